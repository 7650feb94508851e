"""A real peer that skips a layer is proven a cheat: its requester and others act on the proof."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from p2pinfer.core.errors import NobodyServes
from p2pinfer.core.sampling import Sampling
from p2pinfer.core.trust import AuditVerdict, Trust
from p2pinfer.node.model_supply import open_store
from p2pinfer.node.requester import Client
from p2pinfer.node.verify import verify_file
from tests.support.processes import Peer, client_options, join, open_client, wait_ready

pytestmark = pytest.mark.real

PROVEN_S_MAX = 120.0
"""For another peer to receive a proof and check it, on a busy machine."""

CHEAT = """
from contextlib import asynccontextmanager
from p2pinfer.cli.main import main
from p2pinfer.node import peer

honest = peer.open_stage

@asynccontextmanager
async def open_stage(*args, **options):
    async with honest(*args, **options) as engine:
        opening = engine.open
        engine.open = lambda end, *how: opening(end - 1, *how)
        yield engine

peer.open_stage = open_stage
main()
"""


def home_beside(shared: Path, path: Path) -> Path:
    """Make a new home that shares the parts and slices, which take a while to make."""
    for name in ("data/store", "cache"):
        (shared / name).mkdir(parents=True, exist_ok=True)
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).symlink_to(shared / name)
    return path


async def ask(client: Client) -> Trust:
    """Answer a question, and have every stage audited."""
    prompt = await client.ends.tokenize("The capital of France is the city of", special=False)
    async with client.open_session(await client.find_route(lambda _: None)) as session:
        async for _ in session.generate(prompt * 5, Sampling(temperature=0), 4):
            pass
        trust = await client.examine(session)
    assert trust
    return trust


async def test_a_cheat_is_proven_and_refused(
    default_model: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peers that receive the proof run the rows again; then no route contains the cheat."""
    mine, others = (home_beside(home, tmp_path / name) for name in ("mine", "others"))
    monkeypatch.setenv("P2PINFER_HOME", str(mine))
    options = client_options(default_model)
    model = ["--model", options.model or ""]
    peers: list[Peer] = []

    def start(layers: str, *command: str) -> Peer:
        ways_in = [peer.address for peer in peers[:1]]
        process = join(others, ["--layers", layers, *model], bootstrap=ways_in, command=command)
        peers.append(wait_ready(process))
        return peers[-1]

    try:
        for layers in ("1:10", "19:29"):
            await trio.to_thread.run_sync(start, layers)
        cheat = await trio.to_thread.run_sync(start, "10:19", sys.executable, "-c", CHEAT)
        options = replace(options, bootstrap=[peers[0].address], audit_rate=1.0, find_s_max=2.0)
        async with open_client(options) as client:
            trust = await ask(client)
            first, middle, last = (each.verdict for each in trust.audits)
            assert {first, last} <= {AuditVerdict.SAME, AuditVerdict.PROVED}
            assert middle is AuditVerdict.CHEATED
            assert trust.audits[1].blamed == cheat.id
            with pytest.raises(NobodyServes):
                await client.find_route(lambda _: None)
            honest = await trio.to_thread.run_sync(start, "10:19")
            trust = await ask(client)
            assert (trust.held, trust.audits[1].peer) == (True, honest.id)
            assert client.frauds
            with trio.fail_after(PROVEN_S_MAX):
                while not (proofs := list((others / "data" / "proofs").glob("*.proof"))):
                    await client.frauds.tell(len(peers))
                    await trio.sleep(0.5)
        found = await verify_file(proofs[0].read_bytes(), open_store())
        assert (found.held, found.findings[-1].held) == (True, True)
        own = (mine / "data" / "proofs").iterdir()
        assert [each.name for each in own] == [proofs[0].name]
    finally:
        for peer in peers:
            peer.stop()
