"""Circuits with js-libp2p, as relay, as hidden peer and as caller.

Its packages are installed by ``make interop``; without Node or them these tests are skipped.
"""

import json
import shutil
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pinfer.core.ids import PeerId
from transports.base import Reach, Relaying
from transports.libp2p.circuit import circuit_address
from transports.libp2p.circuit_messages import CircuitStatus
from transports.libp2p.negotiation import open_stream
from transports.libp2p.transport import Libp2pTransport, open_libp2p

HERE = ["/ip4/127.0.0.1/tcp/0"]
JS = Path(__file__).parent / "js"
PING = "/ipfs/ping/1.0.0"
TEST_S_MAX = 60.0
WHY_NOT = (
    "Node is not installed"
    if shutil.which("node") is None
    else "js-libp2p is not installed: make interop"
    if not (JS / "node_modules/.package-lock.json").exists()  # which npm writes last
    else ""
)

pytestmark = [pytest.mark.real, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]


@asynccontextmanager
async def js(*words: str) -> AsyncGenerator[dict[str, Any], None]:
    """Run a js-libp2p peer; yield what it prints once it is ready."""
    process = await trio.lowlevel.open_process(
        ["node", str(JS / "node.mjs"), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin
    assert process.stdout
    try:
        line = b""
        while not line.endswith(b"\n"):
            more = await process.stdout.receive_some(4096)
            assert more, "it ended"
            line += more
        yield json.loads(line)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()
            await process.stdout.aclose()
            await process.wait()


async def ping(caller: Libp2pTransport, address: str, peer: str) -> None:
    """Send 32 bytes through a circuit, and expect them back."""
    inner = await caller.circuits.dial(address, PeerId(peer))
    sent = bytes(range(32))
    stream = await open_stream(inner, caller.peer_id, PING, first=sent)
    await stream.wait_buffered(32)
    assert stream.take(32) == sent


async def test_we_are_hidden_behind_its_relay() -> None:
    """A js caller pings us through a js relay, and so does a caller of ours."""
    with trio.fail_after(TEST_S_MAX):
        async with js("relay") as relay, open_libp2p(None, [], "test") as hidden:
            at = relay["addresses"][0]
            hidden.circuits.serves = relay["id"].__eq__
            outer = await hidden.reach_directly(relay["id"], [at])
            assert (await hidden.circuits.reserve(outer)).status == CircuitStatus.OK
            address = circuit_address(at, hidden.peer_id)
            async with js("call", address) as said:
                assert said["ms"] >= 0
            async with open_libp2p(None, [], "test") as caller:
                await ping(caller, address, hidden.peer_id)


async def test_it_is_hidden_behind_our_relay() -> None:
    """A caller of ours pings a js peer through our relay, and so does a js caller."""
    reach = Reach("test", relaying=Relaying.ALWAYS)
    with trio.fail_after(TEST_S_MAX):
        async with open_libp2p(None, HERE, reach) as relay:
            at = relay.own_addresses[0]
            async with js("hidden", at) as hidden, open_libp2p(None, [], "test") as caller:
                address = circuit_address(at, hidden["id"])
                await ping(caller, address, hidden["id"])
                async with js("call", address) as said:
                    assert said["ms"] >= 0
