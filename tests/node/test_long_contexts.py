"""How long sessions may be by themselves: as the model and the memory allow."""

from dataclasses import replace
from pathlib import Path

import pytest

from p2pinfer.cli.machine_options import MachineFlags
from p2pinfer.core.errors import UserError
from p2pinfer.core.limits import CONTEXT_DEFAULT, LONG_CONTEXT_DEFAULT
from p2pinfer.engine.llama.memory import GPU_BYTES, GPU_SHARE, WORKER_BYTES, sessions_bytes
from p2pinfer.engine.store.assemble import PartsModel
from p2pinfer.node.memory_plan import appetite, for_stage, layer_bytes, layers_max, too_small
from p2pinfer.node.model_supply import name_model, open_store, open_whole
from p2pinfer.node.requester import Machine, check_memory, for_model, with_long_sessions
from tests.support.gpus import CARD
from tests.support.model_factory import Recipe, write_model

AUTO = Machine(4, CONTEXT_DEFAULT, 1, LONG_CONTEXT_DEFAULT)
LAYERS = 12


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PartsModel:
    """Provide a tiny model that was trained for 32,768 positions."""
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path / "home"))
    write_model(Recipe("seed_oss", LAYERS, {"context_length": 32_768}), tmp_path / "m.gguf")
    store = open_store()
    return open_whole(name_model(str(tmp_path / "m.gguf"), store, lambda *_: None), store)


def test_a_context_that_is_named_is_kept() -> None:
    """Without one, some sessions may be longer."""
    flags = MachineFlags(sessions=4, threads=1, gpu="off")
    assert flags.machine() == AUTO
    assert replace(flags, context=100).machine() == Machine(4, 100)


def test_the_longest_that_fit_are_chosen() -> None:
    """One long session is worth more than several shorter ones."""
    seen: list[tuple[int, int]] = []

    def fits(count: int, length: int) -> bool:
        seen.append((count, length))
        return count * length <= 20_000

    found = with_long_sessions(AUTO, fits)
    assert (found.long_context, found.long_sessions, found.long_cells) == (16_384, 1, 16_384)
    assert seen[:5] == [(4, 32_768), (3, 32_768), (2, 32_768), (1, 32_768), (4, 16_384)]
    assert with_long_sessions(AUTO, lambda *_: False).long_cells == 0
    assert with_long_sessions(Machine(4, 100), fits).long_cells == 0
    decided = replace(AUTO, long_sessions=2)
    assert with_long_sessions(decided, fits) == decided


def test_no_session_is_longer_than_the_model_was_trained_for(model: PartsModel) -> None:
    """Nor is a usual one."""
    assert for_model(AUTO, model) == AUTO
    info = replace(model.info, context_tokens=2048)
    short = for_model(AUTO, replace(model, info=info))
    assert (short.context, short.long_context) == (2048, 2048)
    assert with_long_sessions(short, lambda *_: True).long_cells == 0


def test_a_gpus_memory_is_planned_instead_of_the_machines(model: PartsModel) -> None:
    """As many layers as fit there; a person's limit counts where it is lower."""
    layer = layer_bytes(model, AUTO)
    room = int((GPU_BYTES + WORKER_BYTES + 2.5 * layer) / GPU_SHARE)
    gpu = replace(CARD, free_bytes=room)
    on_gpu = replace(AUTO, gpu=gpu)
    assert layers_max(model, on_gpu, None) == 2
    assert layers_max(model, on_gpu, 1 << 40) == 2
    assert layers_max(model, on_gpu, WORKER_BYTES + layer) == 1
    full = replace(on_gpu, gpu=replace(gpu, free_bytes=0))
    assert layers_max(model, full, None) == 0
    assert "CUDA0 (A card) can spare only 0 MiB" in too_small(model, full, None)
    with pytest.raises(UserError, match=r"of memory, and 0\.0 GiB are free"):
        check_memory(model, LAYERS, full)


def test_long_sessions_are_part_of_a_peers_memory_plan(model: PartsModel) -> None:
    """The first may cost a fifth of the layers, further ones none; where that is too much, none.

    A peer that has room for all layers leaves none out.
    """
    usual = layer_bytes(model, AUTO)
    long = sessions_bytes(model.header, 1, 1, LONG_CONTEXT_DEFAULT)

    def given(memory: int) -> tuple[int, int, int]:
        before = layers_max(model, AUTO, memory)
        found = for_stage(model, AUTO, memory, before, is_fixed=False)
        after = layers_max(model, found, memory)
        assert after * layer_bytes(model, found) <= memory - WORKER_BYTES
        return found.long_cells, before, after

    inner = LAYERS - 2
    assert given(WORKER_BYTES + inner * (usual + 4 * long)) == (4 * 32_768, inner, inner)
    assert given(WORKER_BYTES + inner * (usual + long)) == (32_768, inner, inner)
    cells, before, after = given(WORKER_BYTES + 8 * (usual + long))
    assert 0 < cells < 32_768
    assert (before, after) == (inner, inner)
    assert given(WORKER_BYTES + 6 * usual - 1) == (8_192, 5, 4)
    assert given(WORKER_BYTES + inner * usual) == (0, inner, inner)
    wants = appetite(model, AUTO, 1)
    assert wants.least == WORKER_BYTES + usual
    assert given(wants.most) == (4 * 32_768, inner, inner)
    cells, before, after = given(WORKER_BYTES + 2 * usual)
    assert (cells, before, after) == (0, 2, 2)
