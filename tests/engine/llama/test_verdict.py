"""Openings of rows that llama.cpp computed hold, and those of altered ones do not."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import evolve

from p2pinfer.core.attention_fit import ATTENTION_MAX
from p2pinfer.core.errors import UnsupportedModel
from p2pinfer.core.opening import BadOpening, OpenedTrace, check_roots, check_signed, decode, encode
from p2pinfer.core.regimes import Regime
from p2pinfer.core.traced import Traced
from p2pinfer.core.verdict import (
    CACHED_KEY,
    CACHED_VALUE,
    RECEIVED,
    SENT,
    Verdict,
    judge_row,
)
from p2pinfer.engine.llama.binding import Settings, Slice
from tests.support.openings import ASKER, Computed, Known, Session, known
from tests.support.tiny_models import tiny_model
from transports.identity import verify

LAYERS = 7
QUANTISATIONS = ("Q4_0", "Q4_1", "Q8_0", "Q4_K_M", "Q6_K")

Models = Callable[[str, str], Known]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Give a function that writes a tiny model in a quantisation, once, and folds it."""
    folder, found = tmp_path_factory.mktemp("opened"), dict[tuple[str, str], Known]()

    def model(name: str, quantisation: str) -> Known:
        if (name, quantisation) not in found:
            found[name, quantisation] = known(tiny_model(folder, name, quantisation), LAYERS)
        return found[name, quantisation]

    return model


def sliced(path: Path, **settings: Any) -> Slice:
    """Load all layers of a model."""
    return Slice(path, logits=False, settings=Settings(**settings), sessions=1, context=2048)


def judge(opening: OpenedTrace, model: Known) -> Verdict:
    """Check an opening as it would come from a peer."""
    opening = decode(encode(opening))
    check_signed(opening, verify)
    check_roots(opening)
    return judge_row(opening, model.shape, model.keys)


def mixed(session: Session, model: Known, count: int, seed: int) -> None:
    """Read rows in runs of random length and regime."""
    chance = np.random.default_rng(seed)
    while (at := len(session.received.tree)) < count:
        regime = Regime(int(chance.integers(3)))
        rows = int(chance.integers(1, regime.rows_max + 1))
        if regime is Regime.WIDE:
            rows = max(rows, 8)
        session.read(model.rows(min(rows, count - at), seed + at), regime)


@pytest.mark.parametrize("regime", Regime)
@pytest.mark.parametrize(
    ("name", "quantisation", "settings"),
    [
        ("llama", "Q4_0", {"repack": True}),
        ("qwen2", "Q4_1", {}),
        ("qwen3", "Q8_0", {"values_bf16": True}),
        ("qwen2", "Q4_K_M", {"repack": False}),
        ("llama", "Q6_K", {"repack": False}),
        ("llama", "Q4_1", {"flash_attention": False}),
        ("qwen3", "Q4_K_M", {"flash_attention": False, "repack": False, "threads": 2}),
    ],
)
def test_honest_rows_hold(
    models: Models, name: str, quantisation: str, settings: dict[str, Any], regime: Regime
) -> None:
    """In every regime, past the first 256 cells, by the kernels of either build."""
    model = models(name, quantisation)
    with closing(sliced(model.path, **settings)) as part:
        session = Session(part, LAYERS)
        session.read(model.rows(270, 1), Regime.BLOCK)
        session.read(model.rows(regime.rows_max, 2), regime)
        for position in (269 + regime.rows_max, 270):
            found = judge(session.open(position), model)
            assert found.fault is None
            assert found.layers == found.with_attention == LAYERS
            assert found.worst[Traced.ATTENTION] < ATTENTION_MAX / 5
            assert set(found.worst) >= {*Traced, RECEIVED, SENT, CACHED_KEY, CACHED_VALUE}


def test_rows_in_float16_hold(models: Models) -> None:
    """A session may send rows in half the bytes."""
    model = models("qwen3", "Q4_0")
    with closing(sliced(model.path)) as part:
        session = Session(part, LAYERS, "f16")
        session.read(model.rows(20, 1).astype(np.float16).astype(np.float32), Regime.WIDE)
        assert judge(session.open(19), model).held


@pytest.fixture(scope="module", params=[True, False], ids=["flash", "plain"])
def session(request: pytest.FixtureRequest, models: Models) -> Iterator[tuple[Session, Known]]:
    """Provide a session of 60 rows, the last of which are narrow."""
    model = models("qwen2", "Q4_1")
    with closing(sliced(model.path, flash_attention=request.param)) as part:
        session = Session(part, LAYERS)
        session.read(model.rows(48, 1), Regime.WIDE)
        session.read(model.rows(7, 2), Regime.NARROW)
        yield session, model


def noisy(numbers: bytes, share: float, kind: str = "<f4") -> bytes:
    """Add noise of a size relative to the numbers."""
    plain = np.frombuffer(numbers, kind).astype(np.float64)
    noise = np.random.default_rng(5).standard_normal(plain.size)
    noise *= share * np.linalg.norm(plain) / np.linalg.norm(noise)
    return (plain + noise).astype(kind).tobytes()


@pytest.mark.parametrize("step", Traced)
@pytest.mark.parametrize("layer", [0, 3, LAYERS - 1])
def test_a_false_step_is_named(session: tuple[Session, Known], layer: int, step: Traced) -> None:
    """Noise of 1e-4 in any step is found in that layer and step; in attention, twice its bound."""
    opened, model = session
    computed = opened.compute(54)
    given, steps, keys, values = computed[layer]
    share = 2 * ATTENTION_MAX if step is Traced.ATTENTION else 1e-4
    altered = [
        noisy(each, share) if name is step else each
        for name, each in zip(Traced, steps, strict=True)
    ]
    computed[layer] = given, tuple(altered), keys, values
    fault = judge(opened.open(54, computed), model).fault
    assert fault
    if step is Traced.OUT and layer == LAYERS - 1:
        assert (fault.layer, fault.step) == (layer, SENT)
    else:
        assert (fault.layer, fault.step) == (layer, step)
    assert str(layer) in fault.text()


def test_attention_of_another_kind_is_false(
    session: tuple[Session, Known], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a stage says of its attention is what it is held to."""
    opened, model = session
    said = "plain" if opened.part.settings.flash_attention else "f16"
    monkeypatch.setattr("tests.support.openings.attention_of", lambda _: said)
    fault = judge(opened.open(54), model).fault
    assert fault
    assert fault.step == Traced.ATTENTION


@pytest.mark.parametrize(("share", "is_provable"), [(2e-4, False), (2e-3, True)])
def test_little_noise_in_attention_is_named_but_accuses_nobody(
    session: tuple[Session, Known], share: float, is_provable: bool
) -> None:
    """In every head at once, so that it changes the row as much as any cheat's."""
    opened, model = session
    computed = opened.compute(54)
    given, steps, keys, values = computed[2]
    at = [*Traced].index(Traced.ATTENTION)
    heads = np.frombuffer(steps[at], "<f4").reshape(model.shape.heads, -1)
    altered = b"".join(noisy(each.tobytes(), share) for each in heads)
    computed[2] = given, (*steps[:at], altered, *steps[at + 1 :]), keys, values
    fault = judge(opened.open(54, computed), model).fault
    assert fault
    assert (fault.layer, fault.step) == (2, Traced.ATTENTION)
    assert fault.is_provable == is_provable


Alter = Callable[[list[Computed]], None]


def _other_row(computed: list[Computed]) -> None:
    computed[0] = (noisy(computed[0][0], 1e-6), *computed[0][1:])


def _other_joint(computed: list[Computed]) -> None:
    computed[2] = (noisy(computed[2][0], 1e-6), *computed[2][1:])


def _one_bit(rows: bytes, position: int, count: int) -> bytes:
    """Change a row's largest number by two units: by one it may lie near halfway, and be either."""
    words = np.frombuffer(rows, "<u2").reshape(count, -1).copy()
    words[position, np.abs(words[position].view("<f2")).argmax()] ^= 2
    return words.tobytes()


def _other_key(computed: list[Computed]) -> None:
    given, steps, keys, values = computed[1]
    computed[1] = given, steps, _one_bit(keys, 54, 55), values


def _other_value(computed: list[Computed]) -> None:
    given, steps, keys, values = computed[1]
    computed[1] = given, steps, keys, _one_bit(values, 54, 55)


def _other_past(computed: list[Computed]) -> None:
    given, steps, keys, values = computed[1]
    computed[1] = (
        given,
        steps,
        keys,
        noisy(values, 0.01, "<f2")[: -len(values) // 55] + (values[-(len(values) // 55) :]),
    )


@pytest.mark.parametrize(
    ("alter", "layer", "step"),
    [
        (_other_row, 0, RECEIVED),
        (_other_joint, 2, RECEIVED),
        (_other_key, 1, CACHED_KEY),
        (_other_value, 1, CACHED_VALUE),
        (_other_past, 1, Traced.ATTENTION),
    ],
)
def test_false_rows_and_cells_are_named(
    session: tuple[Session, Known], alter: Alter, layer: int, step: str
) -> None:
    """One bit of a row, or of the last number of a cell, is found; so are invented cells."""
    opened, model = session
    computed = opened.compute(54)
    alter(computed)
    fault = judge(opened.open(54, computed), model).fault
    assert fault
    assert (fault.layer, fault.step) == (layer, step)


def test_sizes_and_numbers_of_any_kind_are_faults(session: tuple[Session, Known]) -> None:
    """A cheat may sign for arrays of any length, or for what is no number."""
    opened, model = session
    nonsense = (
        b"\0" * 4,
        b"\xff" * 4 * 256,
        b"\0" * 4 * 512,
        b"\0\0\xc0\x7f" * 256,
        *(b"\xff\xff\x7f\x7f" * size for size in (128, 256, 512)),  # the largest float32
    )
    for at in range(len(Traced)):
        for each in nonsense:
            computed = opened.compute(54)
            given, steps, keys, values = computed[1]
            altered = (*steps[:at], each, *steps[at + 1 :])
            computed[1] = given, altered, keys[: 55 * 2 * len(each)], values
            fault = judge(opened.open(54, computed), model).fault
            assert fault
            assert fault.layer == 1


def test_what_a_stage_did_not_sign_is_refused(session: tuple[Session, Known]) -> None:
    """Nothing of an opening can be changed behind its stage's back, nor taken to another row."""
    opened, _ = session
    good, other = opened.open(54), opened.open(53)
    altered = evolve(good.layers[0], given=b"\0" * 1024)
    cell = evolve(good.layers[0], keys=good.layers[0].keys[:-2] + b"\0\0")
    for bad in (
        evolve(good, row=other.row),
        evolve(good, layers=(altered,)),
        evolve(good, layers=(cell,)),
        evolve(good, layers=other.layers),
        evolve(good, layers=good.layers[::-1]),
        evolve(good, leaves=good.leaves[::-1]),
        evolve(good, cells=good.cells[1:]),
    ):
        with pytest.raises(BadOpening):
            check_roots(bad)
    for pledge in (
        evolve(good.pledge, position=53),
        evolve(good.pledge, peer=ASKER.peer_id),
        evolve(good.pledge, cells=evolve(good.pledge.cells, body=bytes(64))),
    ):
        with pytest.raises(BadOpening):
            check_signed(evolve(good, pledge=pledge), verify)


@pytest.mark.parametrize(("name", "why"), [("mixtral", "experts"), ("phi3", "phi3")])
def test_other_layers_are_refused(models: Models, name: str, why: str) -> None:
    """Layers with experts, and of other architectures, have no key."""
    with pytest.raises(UnsupportedModel, match=why):
        models(name, "Q8_0")
