"""What a model needs of a pool of machines."""

from dataclasses import replace
from pathlib import Path

import pytest

from p2pinfer.engine.gguf.architectures import RULES
from p2pinfer.engine.gguf.reader import read_header
from p2pinfer.engine.llama.memory import WORKER_BYTES
from p2pinfer.node.memory_plan import layers_max
from p2pinfer.node.model_supply import name_model, open_store, open_whole
from p2pinfer.node.pooling import PUBLISHED, ModelSize, Pool, measured, share, suggest
from p2pinfer.node.requester import Machine
from tests.support.toys import quiet, write_toy

GB = 10**9

MODEL = ModelSize(
    title="Made up",
    model="hf:o/r",
    license=None,
    architecture="llama",
    layers=12,
    nbytes=13 * GB,
    layer_bytes=GB,
    ends_bytes=GB // 2,
    cell_bytes=1000,
    context=2000,
    layers_at_once_max=12,
    source="nowhere",
)


def pool(memory: float, peers: int, sessions: int = 1, context: int = 1000) -> Pool:
    """Make up a pool; memory in layers without cells."""
    return Pool(WORKER_BYTES + int(memory * GB), peers, sessions, context)


def test_shares() -> None:
    """Ten of twelve layers are served; each needs its weights and the cells of its sessions."""
    each = GB + 1000 * 1000
    found = share(MODEL, pool(2.5, 6))
    assert (found.layers_each, found.peers_min, found.copies, found.fits) == (2, 5, 1.2, True)
    assert found.layer_needs_bytes == WORKER_BYTES + each
    assert found.peer_needs_bytes == WORKER_BYTES + 2 * each
    assert found.requester_needs_bytes == WORKER_BYTES + GB // 2 + 2 * each
    assert share(MODEL, pool(2.5, 4)).fits is False
    assert share(MODEL, pool(2, 6)).layers_each == 1  # cells take the rest
    assert share(MODEL, pool(0.9, 6)).peers_min is None
    assert share(MODEL, pool(-1, 6)).layers_each == 0


def test_contexts_end_with_the_model() -> None:
    """A session cannot be longer than what the model was made for."""
    long = share(MODEL, pool(2.5, 6, sessions=2, context=10**6))
    assert long.layer_needs_bytes == WORKER_BYTES + GB + 2 * 2000 * 1000


def test_one_machine_may_be_enough() -> None:
    """Then a pool is not needed; some architectures limit what one peer may serve."""
    large = share(MODEL, pool(20, 3))
    assert (large.layers_each, large.needs_pool, large.copies) == (10, False, 3)
    assert share(replace(MODEL, layers_at_once_max=4), pool(20, 3)).peers_min == 3


def test_layers_of_zeros_take_room() -> None:
    """Which a slice has in front of its own, where it does not begin with a period."""
    plain, padded = share(MODEL, pool(5, 6)), share(replace(MODEL, layers_of_zeros=3), pool(5, 6))
    assert padded.layers_each == plain.layers_each - 3
    assert padded.layer_needs_bytes - plain.layer_needs_bytes == 3 * (
        plain.layer_needs_bytes - WORKER_BYTES
    )
    assert share(replace(MODEL, layers_of_zeros=3), pool(1, 6)).layers_each == 0


def test_order() -> None:
    """The largest that fits comes first, then what lacks least."""
    sizes = [replace(MODEL, title=str(n), layer_bytes=n * GB, nbytes=n * GB) for n in (9, 1, 4, 2)]
    assert [each.model.title for each in suggest(sizes, pool(2.5, 6))] == ["1", "2", "4", "9"]
    assert [each.model.title for each in suggest(sizes, pool(5, 6))] == ["2", "1", "4", "9"]


def test_peers_take_as_many_layers_as_suggested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arithmetic is that of a peer that joins."""
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path))
    path = write_toy(tmp_path / "toy.gguf", rows=2000)
    store = open_store()
    opened = open_whole(name_model(str(path), store, quiet), store)
    model = measured(read_header(path), "Toy", "id", path.stat().st_size)
    assert (model.layers, model.license, model.is_here) == (4, "apache-2.0", True)
    each = model.layer_bytes + model.cell_bytes * 2 * 64
    for layers in (0, 1, 2):
        memory = WORKER_BYTES + int((layers + 0.5) * each)
        found = share(model, Pool(memory, 1, 2, 64))
        assert layers == found.layers_each == layers_max(opened, Machine(2, 64, 1), memory)


def test_published_sizes_agree_with_each_other() -> None:
    """Layers and ends make up the file, to a tenth; each architecture can be split."""
    for model in PUBLISHED:
        together = model.layers * model.layer_bytes + model.ends_bytes
        assert together == pytest.approx(model.nbytes, rel=0.1), model.title
        assert model.architecture in RULES
