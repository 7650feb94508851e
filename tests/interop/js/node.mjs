// node.mjs relay | hidden RELAY_ADDRESS | call CIRCUIT_ADDRESS
import './poly.mjs'
import { createLibp2p } from 'libp2p'
import { tcp } from '@libp2p/tcp'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { identify } from '@libp2p/identify'
import { ping } from '@libp2p/ping'
import { circuitRelayServer, circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { multiaddr } from '@multiformats/multiaddr'

const [role, address] = process.argv.slice(2)
const options = {
  transports: [tcp(), circuitRelayTransport()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  connectionGater: { denyDialMultiaddr: () => false },
  services: { identify: identify({ runOnLimitedConnection: true }), ping: ping({ runOnLimitedConnection: true }) }
}
if (role === 'relay') {
  options.addresses = { listen: ['/ip4/127.0.0.1/tcp/0'] }
  options.services.relay = circuitRelayServer()
} else if (role === 'hidden') {
  options.addresses = { listen: [`${address}/p2p-circuit`] }
}
const node = await createLibp2p(options)
if (role === 'call') {
  const ms = await node.services.ping.ping(multiaddr(address))
  console.log(JSON.stringify({ ms }))
  await node.stop()
  process.exit()
}
while (node.getMultiaddrs().length === 0) await new Promise(resolve => setTimeout(resolve, 50))
console.log(JSON.stringify({ id: node.peerId.toString(), addresses: node.getMultiaddrs().map(String) }))
process.stdin.resume()
process.stdin.on('end', () => process.exit())
