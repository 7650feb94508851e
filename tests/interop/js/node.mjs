// node.mjs relay | hidden RELAY_ADDRESS [OWN_ADDRESS] | call CIRCUIT_ADDRESS [OWN_ADDRESS]
// With an own address it speaks DCUtR, and a caller waits for a direct connection.
import './poly.mjs'
import { createLibp2p } from 'libp2p'
import { tcp } from '@libp2p/tcp'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { identify } from '@libp2p/identify'
import { ping } from '@libp2p/ping'
import { circuitRelayServer, circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { dcutr } from '@libp2p/dcutr'
import { multiaddr } from '@multiformats/multiaddr'

const [role, address, own] = process.argv.slice(2)
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
if (own) {
  options.addresses = { listen: [...(options.addresses?.listen ?? []), own], appendAnnounce: [own] }
  options.services.dcutr = dcutr()
}
const node = await createLibp2p(options)
if (role === 'call') {
  const ms = await node.services.ping.ping(multiaddr(address))
  const isDirect = () => node.getConnections().some(each => address.endsWith(each.remotePeer.toString()) && !each.remoteAddr.toString().includes('p2p-circuit'))
  while (own && !isDirect()) await new Promise(resolve => setTimeout(resolve, 50))
  console.log(JSON.stringify({ ms, direct: isDirect() }))
  await node.stop()
  process.exit()
}
while (!node.getMultiaddrs().some(each => role !== 'hidden' || each.toString().includes('p2p-circuit'))) await new Promise(resolve => setTimeout(resolve, 50))
console.log(JSON.stringify({ id: node.peerId.toString(), addresses: node.getMultiaddrs().map(String) }))
process.stdin.resume()
process.stdin.on('end', () => process.exit())
