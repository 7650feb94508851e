"""Naming a model: by a file, by its id, or by the beginning of one that is here."""

import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
import trio
from blake3 import blake3

from p2pinfer.core.errors import PeerError, UserError
from p2pinfer.core.ids import ModelId
from p2pinfer.core.manifest import Manifest
from p2pinfer.engine.gguf.adapters import adapter_path
from p2pinfer.engine.gguf.reader import read_header
from p2pinfer.engine.gguf.slicing import extents, plan_stage, write_slice
from p2pinfer.engine.store.adapters import add_adapter
from p2pinfer.engine.store.assemble import PartsModel, open_parts
from p2pinfer.engine.store.split import add_model
from p2pinfer.engine.store.store import Store
from p2pinfer.node.model_supply import REPAIRS_MAX, name_model, obtain, open_store, open_whole
from p2pinfer.places import cache_dir
from peers.discovery.directory import Directory
from peers.parts.progress import Progress
from peers.parts.server import PartsServer
from tests.support.adapters import write_adapter
from tests.support.model_factory import write_model
from tests.support.parts_swarm import Where
from tests.support.recipes import CASES
from tests.support.sharded import write_shards
from tests.support.stored import flip
from tests.support.swarm import peer
from tests.support.toys import quiet, write_toy
from transports.memory.network import MemoryNetwork, MemoryTransport


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep everything in the test's own directory."""
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path / "home"))


def test_a_file_is_read_once(tmp_path: Path) -> None:
    """Its id is remembered as long as the file is unchanged and its parts are here."""
    store, said = open_store(), list[str]()
    file = write_toy(tmp_path / "toy.gguf")

    def name() -> ModelId:
        return name_model(str(file), store, lambda what, *_: said.append(what))

    model = name()
    assert open_whole(model, store).id == model
    assert said
    said.clear()
    assert name() == model
    assert said == []
    store.remove(model)
    with pytest.raises(UserError, match="not all of model"):
        open_whole(model, store)
    assert name() == model
    assert said


def test_a_manifest_of_another_release_is_replaced(tmp_path: Path) -> None:
    """If a manifest's format is unknown, the file is split again."""
    store = open_store()
    file = write_toy(tmp_path / "toy.gguf")
    model = name_model(str(file), store, quiet)
    other = msgpack.packb(["p2pinfer model 1"])
    old = blake3(other).hexdigest()
    (store.root / "manifests" / old).write_bytes(other)
    seen = cache_dir() / "files.json"
    seen.write_text(seen.read_text().replace(model, old))
    assert name_model(str(file), store, quiet) == model


@asynccontextmanager
async def holder(file: Path, root: Path) -> AsyncIterator[tuple[MemoryTransport, Directory, Store]]:
    """Run a holder of a file's parts; yield a fetcher's transport, directory, and that store."""
    seeded = Store(root / "holder")
    add_model(seeded, file, quiet)
    network = MemoryNetwork(lambda _, __: 0.0)
    async with network.join(peer("holder")) as other, network.join(peer("me")) as me:
        server = PartsServer(other, seeded)
        server.listen()
        known: Any = SimpleNamespace(holding=lambda _: [Where(other.peer_id)])
        yield me, known, seeded


@pytest.mark.parametrize("times", [0, 1, REPAIRS_MAX, REPAIRS_MAX + 1])
async def test_damaged_parts_are_fetched_again_a_few_times(times: int, tmp_path: Path) -> None:
    """After that, a sentence says what to do."""
    store, tries = Store(tmp_path / "mine"), 0

    def make(model: PartsModel) -> Path:
        nonlocal tries
        tries += 1
        if tries <= times:
            flip(store.path(model.manifest.part("layer.2")), 300)
        return model.stage(2, 3)

    def needed(manifest: Manifest) -> Iterable[str]:
        return manifest.needed(2, 3)

    async with holder(write_toy(tmp_path / "toy.gguf"), tmp_path) as (me, directory, seeded):
        (manifest,) = seeded.models()
        fetching = partial(obtain, me, directory, store, manifest.id, needed, make)
        with trio.fail_after(60):
            if times <= REPAIRS_MAX:
                model, path = await fetching(lambda _: None, Random(1))
                assert (model.id, path.exists()) == (manifest.id, True)
                assert tries == times + 1
            else:
                with pytest.raises(UserError, match=r"layer\.2 .* fetched 3 times.* set"):
                    await fetching(lambda _: None, Random(1))
                assert tries == REPAIRS_MAX + 1


async def test_blame_reaches_the_fetcher(tmp_path: Path) -> None:
    """A holder with a damaged disk is named to the caller; a full quota is a user error."""
    blamed: list[PeerError] = []
    said: list[str] = []
    async with holder(write_toy(tmp_path / "toy.gguf"), tmp_path) as (me, directory, seeded):
        (manifest,) = seeded.models()

        def tell(progress: Progress) -> None:
            said.append(progress.waiting)
            if progress.waiting:
                scope.cancel()

        async def fetch(store: Store) -> None:
            names = ["metadata", "layer.2"]
            asked = (me, directory, store, manifest.id, lambda _: names, lambda _: None)
            await obtain(*asked, tell, Random(1), blamed.append)

        small = Store(tmp_path / "small", quota_bytes=5_000)
        with (
            trio.CancelScope() as scope,
            pytest.raises(UserError, match="exceed the store's quota"),
        ):
            await fetch(small)
        flip(seeded.path(manifest.part("layer.2")), 300)
        with trio.fail_after(60), trio.CancelScope() as scope:
            await fetch(Store(tmp_path / "mine"))
        assert said[-1] == "no peer online holds layer.2; waiting"
        (error,) = blamed
        assert error.peer == peer("holder")
        assert str(error).startswith(
            f"{error.peer} reports that its disk damaged chunk 0 of layer.2"
        )


def test_ids_and_their_beginnings(tmp_path: Path) -> None:
    """A whole id need not be here; a beginning must be of one model that is."""
    store = open_store()
    model = name_model(str(write_toy(tmp_path / "toy.gguf")), store, lambda *_: None)
    assert name_model(model[:8], store, lambda *_: None) == model
    assert name_model("0" * 64, store, lambda *_: None) == "0" * 64
    with pytest.raises(UserError, match="no model here has the id"):
        name_model("0" * 8, store, lambda *_: None)


@pytest.mark.parametrize("name", ["gpt-oss", "deepseek2"])
async def test_a_sharded_model_joins_from_nothing(name: str, tmp_path: Path) -> None:
    """Each peer fetches only the parts of its layers, and cuts what the unsplit file gives."""
    whole = tmp_path / "whole.gguf"
    write_model(CASES[name].recipe, whole)
    shards = write_shards(whole, tmp_path / "shards", 20)
    assert len(shards) > 2
    layers = CASES[name].recipe.layers
    async with holder(shards[1], tmp_path) as (me, directory, seeded):
        (manifest,) = seeded.models()
        for first, end in ((1, 3), (3, layers)):
            store = Store(tmp_path / f"peer{first}")
            model, path = await obtain(
                me,
                directory,
                store,
                manifest.id,
                partial(Manifest.needed, first=first, end=end),
                partial(PartsModel.stage, first=first, end=end),
                lambda _: None,
                Random(1),
            )
            held = {part.name for part in model.manifest.parts if store.held(part)}
            assert held == set(manifest.needed(first, end))
            cut = tmp_path / f"cut{first}.gguf"
            header = read_header(whole)
            write_slice(plan_stage(header, first, end), extents(header, whole), cut)
            assert path.read_bytes() == cut.read_bytes()


def test_a_model_in_shards_is_read_once(tmp_path: Path) -> None:
    """Whichever shard is named, until one of them changes."""
    shards = write_shards(write_toy(tmp_path / "toy.gguf"), tmp_path / "shards", 5)
    store, said = open_store(), list[str]()
    ids = {name_model(str(s), store, lambda what, *_: said.append(what)) for s in shards[:1]}
    said.clear()
    ids |= {name_model(str(s), store, lambda what, *_: said.append(what)) for s in shards}
    assert (len(ids), said) == (1, [])
    os.utime(shards[2], (1, 1))
    name_model(str(shards[0]), store, lambda what, *_: said.append(what))
    assert said


async def test_a_holder_of_the_base_fetches_an_adapter_alone(tmp_path: Path) -> None:
    """The base's parts have the same hashes, and its slice is not written twice either."""
    file, adapter = write_toy(tmp_path / "toy.gguf"), tmp_path / "adapter.gguf"
    write_adapter(file, adapter)
    store = Store(tmp_path / "mine")
    base = add_model(store, file, quiet)
    async with holder(file, tmp_path) as (me, known, seeded):
        child = add_adapter(seeded, adapter, base)
        for layer in (1, 2):  # so that nobody could fetch these
            seeded.path(base.part(f"layer.{layer}")).unlink()

        def needed(manifest: Manifest) -> Iterable[str]:
            return manifest.needed(1, 3)

        def make(model: PartsModel) -> Path:
            return model.stage(1, 3)

        with trio.fail_after(60):
            model, path = await obtain(
                me, known, store, child.id, needed, make, lambda _: None, Random(1)
            )
    assert {part.name for part in child.adapter if store.held(part)} == {
        "adapter.layer.1",
        "adapter.layer.2",
    }
    assert {*read_header(adapter_path(path)).tensors} == {
        f"blk.{n}.up.weight.lora_{half}" for n in (0, 1) for half in "ab"
    }
    assert open_parts(store, base, model.cache).stage_path(1, 3).samefile(path)
    assert name_model("Random changes", store, quiet) == child.id
