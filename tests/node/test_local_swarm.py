"""Peers started for a person: who waits for the first one, and what is said of late ones."""

import sys
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace

import pytest
import trio

from p2pinfer.core.errors import P2pinferError
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.engine.store.adapters import add_adapter
from p2pinfer.engine.store.split import add_model
from p2pinfer.engine.store.store import Store
from p2pinfer.node import local_swarm as module
from p2pinfer.node.local_swarm import _holds, local_swarm, store_of
from p2pinfer.node.model_supply import open_whole
from p2pinfer.node.requester import Machine
from tests.support.adapters import write_adapter
from tests.support.tiny_models import TINY, write_tiny
from tests.support.toys import quiet


def only_the_last_layer(tensor: object) -> bool:
    """Choose one matrix of the last layer, as learning at home does."""
    return getattr(tensor, "name", "") == "blk.6.attn_q.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Give a tiny model's file."""
    path = tmp_path / "tiny.gguf"
    write_tiny(TINY["llama"], path)
    return path


def test_a_home_with_the_base_alone_does_not_hold_a_model_with_an_adapter(
    model: Path, tmp_path: Path
) -> None:
    """Even where none of its own layers is changed, it has yet to get the manifest from a peer."""
    store, home, layers = Store(tmp_path / "store"), tmp_path / "home", LayerRange(2, 4)
    base = add_model(store, model, quiet)
    assert not _holds(home, open_whole(base.id, store), layers)
    copytree(tmp_path / "store", home / "data" / "store", dirs_exist_ok=True)
    assert _holds(home, open_whole(base.id, store), layers)
    write_adapter(model, tmp_path / "adapter.gguf", only_the_last_layer)
    child = add_adapter(store, tmp_path / "adapter.gguf", base, "child")
    assert not _holds(home, open_whole(child.id, store), layers)
    store_of(home).add_manifest(child.encode(), child.id)
    assert _holds(home, open_whole(child.id, store), layers)


async def test_peers_that_are_never_ready_are_named_in_a_sentence(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what the first of them was doing."""
    says = "print('waiting for parts', file=sys.stderr, flush=True)"
    waits = f"import sys, time; {says}; time.sleep(60)"
    monkeypatch.setattr(module, "python_command", lambda *_: [sys.executable, "-c", waits])
    monkeypatch.setattr(module, "READY_S_MAX", 2.0)
    monkeypatch.setattr(module, "LEAVE_S_MAX", 0.1)
    store = Store(tmp_path / "store")
    opened = open_whole(add_model(store, model, quiet).id, store)
    with pytest.raises(P2pinferError, match="serve after 2 s: peer 1: waiting for parts"):
        async with local_swarm(opened, [LayerRange(1, 6)], machine=Machine()):
            pytest.fail("it cannot serve")


async def test_ends_that_are_probed_for_long_keep_nobody_waiting(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peers that serve are a swarm."""
    ready = SimpleNamespace(addresses=("/ip4/127.0.0.1/tcp/1",))

    async def is_ready(*_: object) -> SimpleNamespace:
        return ready

    async def probes_for_ever(*_: object) -> None:
        await trio.sleep_forever()

    sleeps = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(module, "python_command", lambda *_: sleeps)
    monkeypatch.setattr(module, "wait_ready", is_ready)
    monkeypatch.setattr(module, "_probe_ends", probes_for_ever)
    monkeypatch.setattr(module, "READY_S_MAX", 0.5)
    monkeypatch.setattr(module, "LEAVE_S_MAX", 0.1)
    store = Store(tmp_path / "store")
    opened = open_whole(add_model(store, model, quiet).id, store)
    async with local_swarm(opened, [LayerRange(1, 6)], machine=Machine()) as peers:
        assert peers == [ready]
