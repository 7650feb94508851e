"""DCUtR with js-libp2p, which cannot choose the port that it dials from: so it is always public.

Ours is behind a NAT; the two meet through a relay of ours, and get to a direct connection.
"""

import json
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from libp2p.peer.id import ID

from p2pinfer.core.ids import PeerId
from tests.interop.test_js import JS, WHY_NOT
from tests.support.natlab.hosts import Host
from tests.support.natlab.internet import Internet
from tests.support.natlab.punchers import Peer, be_hidden, relay_address, relaying
from transports.libp2p.transport import Libp2pTransport

OWN = "/ip4/5.5.7.7/tcp/4200"

pytestmark = [pytest.mark.real, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]


def js(host: Host, log: Path, *words: str) -> dict[str, Any]:
    """Run a js-libp2p peer on a host; return what it prints once it is ready."""
    with log.open("wb") as errors:
        process = host.popen(
            ["node", str(JS / "node.mjs"), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    assert process.stdout
    line = process.stdout.readline()
    assert line, log.read_text()
    found: dict[str, Any] = json.loads(line)
    return found


async def connect_directly(transport: Libp2pTransport, address: str, peer: PeerId) -> None:
    """Call a peer through a relay, and wait for a direct connection."""
    await transport.connect(relay_address())
    await transport.circuits.dial(address, peer)
    await transport.punches._wait_direct(ID.from_string(peer))


def test_we_call_it(internet: Internet, tmp_path: Path) -> None:
    """It is public, called through a relay all the same, and begins; we dial it from our home."""
    home = internet.nat("home", "5.5.5.11", delay_ms=10)
    ours = internet.host("a", "10.1.0.2", behind=home)
    public = internet.host("js", "5.5.7.7", delay_ms=5)
    with relaying(internet), closing(Peer(ours, "a")) as caller:
        said = js(public, tmp_path / "js.log", "hidden", relay_address(), OWN)
        (address, *_) = [each for each in said["addresses"] if "p2p-circuit" in each]
        caller.run(connect_directly, caller.transport, address, PeerId(said["id"]))


def test_it_calls_us(internet: Internet, tmp_path: Path) -> None:
    """We begin, and dial it where it says to be."""
    home = internet.nat("home", "5.5.5.11", delay_ms=10)
    ours = internet.host("a", "10.1.0.2", behind=home)
    public = internet.host("js", "5.5.7.7", delay_ms=5)
    with relaying(internet), closing(Peer(ours, "a")) as called:
        address = called.run(be_hidden, called.transport)
        said = js(public, tmp_path / "js.log", "call", address, OWN)
        assert said["direct"]
