"""Five processes keep a model of 3 + 2 shares; two are killed, and a newcomer has all of it."""

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
import trio

from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.manifest import CHUNK_BYTES
from p2pinfer.core.python_process import python_command
from p2pinfer.engine.store.store import Store
from peers.parts.describe import fetch_manifest
from peers.parts.fetch import fetch_parts
from tests.support.parts_swarm import Where, make_model
from tests.support.processes import environment
from transports.libp2p.transport import open_libp2p

pytestmark = pytest.mark.real

NETWORK = "kept"
HOLD_S_MAX = 1200.0


@contextmanager
def keeper(home: Path, model: str, *more: str) -> Iterator[tuple[Popen[bytes], str]]:
    """Run a keeper; yield it and its address."""
    words = ("keep", model, "--space", "1GiB", "--code", "3+2", "--network", NETWORK, "--json")
    listen = ("--listen", "/ip4/127.0.0.1/tcp/0", "--until-stdin-closes", *more)
    with Popen(
        python_command("p2pinfer", *words, *listen),
        stdin=PIPE,
        stdout=PIPE,
        env=environment(home),
    ) as child:
        try:
            assert child.stdout
            yield child, json.loads(child.stdout.readline())["addresses"][0]
        finally:
            child.kill()


def wait_safe(child: Popen[bytes]) -> None:
    """Read what a keeper says until two may be lost."""
    assert child.stdout
    for line in child.stdout:
        if json.loads(line)["may_lose"] == 2:
            return
    raise AssertionError("it ended")


@pytest.mark.long  # keepers look around every minute or so
def test_a_model_outlives_two_of_five_storers(tmp_path: Path) -> None:
    """One has it all at first, and dies with another; the id stays the same."""
    model = make_model(layers=6, layer_bytes=3 * CHUNK_BYTES + 999)
    homes = [tmp_path / f"{n}" for n in range(5)]
    model.fill(Store(homes[0] / "data" / "store"))
    with ExitStack() as stack:
        first, way_in = stack.enter_context(keeper(homes[0], model.id))
        others = [
            stack.enter_context(keeper(home, model.id, "--bootstrap", way_in)) for home in homes[1:]
        ]
        for child, _ in [(first, way_in), *others]:
            wait_safe(child)
        for child in (first, others[0][0]):
            child.send_signal(signal.SIGKILL)
            child.wait()
        left = [address for _, address in others[1:]]
        store = Store(tmp_path / "newcomer")
        trio.run(fetch, store, model.id, left)
    for part in model.manifest.parts:
        assert store.path(part).read_bytes() == model.data[part.hash]


async def fetch(store: Store, model: ModelId, addresses: list[str]) -> None:
    """Fetch a model from some peers, as a newcomer does."""
    known = [Where(PeerId(each.rpartition("/")[2]), (each,)) for each in addresses]
    with trio.fail_after(HOLD_S_MAX):
        async with open_libp2p(None, (), NETWORK) as me:
            manifest = await fetch_manifest(me, lambda: known, store, model)
            names = [part.name for part in manifest.parts]
            await fetch_parts(me, lambda: known, store, manifest, names)
