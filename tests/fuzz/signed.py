"""Openings that a stage signs although they are false: all roots and signatures hold, no step must.

Two small layers are computed here, in numpy. A cheat changes a step, goes on from it truly or not,
and signs for what comes out; or it shows other rows, or K and V, than it computed.
"""

from collections.abc import Callable
from functools import cache
from random import Random

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from p2pinfer.core.attention import ATTENTIONS, attend
from p2pinfer.core.layer_key import ATTENTION_NORM, FFN_NORM, LayerKey, LayerShape
from p2pinfer.core.opening import BadOpening, OpenedTrace, check_roots, decode, encode
from p2pinfer.core.projection import fold
from p2pinfer.core.regimes import Regime
from p2pinfer.core.requantise import seen_by
from p2pinfer.core.traced import LINEAR, Traced
from p2pinfer.core.verdict import judge_row
from p2pinfer.core.witness import Rows
from tests.support.openings import SEED, Computed, opened
from transports.identity import Identity

Floats = NDArray[np.float32]

WIDTH, FORWARD, LAYERS, COUNT = 64, 96, 2, 6
SHAPE = LayerShape(
    architecture="qwen2",
    heads=2,
    kv_heads=1,
    head_width=32,
    epsilon=1e-6,
    scale=32**-0.5,
    rotated=32,
    base=10_000.0,
    stretch=1.0,
    is_halved=True,
)
SIZES = {
    "attn_q.weight": (64, WIDTH),
    "attn_k.weight": (32, WIDTH),
    "attn_v.weight": (32, WIDTH),
    "attn_output.weight": (WIDTH, 64),
    "ffn_gate.weight": (FORWARD, WIDTH),
    "ffn_up.weight": (FORWARD, WIDTH),
    "ffn_down.weight": (WIDTH, FORWARD),
}
STORED_AS = "Q8_0"

Change = Callable[[int, int, Traced, Floats], Floats]
"""Takes a position, a layer, a step and its true numbers; returns those to go on with."""


class _Unsigned(Identity):
    """Signs nothing: signatures are not what is tried here, and take most of the time."""

    def sign(self, message: bytes) -> bytes:
        return bytes(64)


STAGE = _Unsigned(b"s" * 32)


@frozen(eq=False)
class _Layer:
    weights: dict[str, Floats]
    norms: dict[str, Floats]
    key: LayerKey


@cache
def _layers() -> list[_Layer]:
    chance = np.random.default_rng(19)
    found = []
    for at in range(LAYERS):
        weights = {
            name: (chance.standard_normal(size) / size[1] ** 0.5).astype(np.float32)
            for name, size in SIZES.items()
        }
        norms = {
            name: (1 + chance.standard_normal(WIDTH) / 10).astype(np.float32)
            for name in (ATTENTION_NORM, FFN_NORM)
        }
        folded = {
            name: fold(SEED, f"blk.{at}.{name}", STORED_AS, each, None)
            for name, each in weights.items()
        }
        found.append(_Layer(weights, norms, LayerKey(folded, norms)))
    return found


@cache
def _given() -> Floats:
    return np.random.default_rng(20).standard_normal((COUNT, WIDTH)).astype(np.float32)


def _compute(change: Change) -> tuple[list[list[list[Floats]]], list[Computed]]:
    """Run all rows; return each layer's steps by position, and what is opened of the last row."""
    rows = list(_given())
    traces, opened_layers = [], []
    for at, layer in enumerate(_layers()):
        keys: list[Floats] = []
        values: list[Floats] = []
        steps = []
        for position, row in enumerate(rows):
            steps.append(_step_by_step(at, layer, position, row, keys, values, change))
        traces.append(steps)
        last = tuple(each.astype("<f4").tobytes() for each in steps[-1])
        cells = (np.stack(each).astype("<f2").tobytes() for each in (keys, values))
        opened_layers.append((rows[-1].tobytes(), last, *cells))
        rows = [each[-1] for each in steps]
    return traces, opened_layers


def _step_by_step(
    at: int,
    layer: _Layer,
    position: int,
    row: Floats,
    keys: list[Floats],
    values: list[Floats],
    change: Change,
) -> list[Floats]:
    found: dict[Traced, Floats] = {}

    def take(step: Traced, numbers: NDArray[np.floating]) -> None:
        found[step] = change(position, at, step, numbers.astype(np.float32))

    def multiply(*steps: Traced) -> None:
        for step in steps:
            given, name = LINEAR[step]
            take(
                step,
                layer.weights[name].astype(np.float64) @ seen_by(STORED_AS, found[given]).values,
            )

    take(Traced.ATTENTION_NORM, _normed(row, layer.norms[ATTENTION_NORM]))
    multiply(Traced.QUERY, Traced.KEY, Traced.VALUE)
    keys.append(_turned(found[Traced.KEY], position)[0].astype(np.float16).astype(np.float32))
    values.append(found[Traced.VALUE].astype(np.float16).astype(np.float32))
    attention = attend(
        _turned(found[Traced.QUERY], position)[None].astype(np.float32),
        np.stack(keys)[None, :, None],
        np.stack(values)[None, :, None],
        SHAPE.scale,
        regime=Regime.NARROW,
        attention=ATTENTIONS["f16"],
    )
    take(Traced.ATTENTION, attention.rows.reshape(-1))
    multiply(Traced.ATTENTION_OUT)
    middle = row + found[Traced.ATTENTION_OUT]
    take(Traced.FFN_NORM, _normed(middle, layer.norms[FFN_NORM]))
    multiply(Traced.GATE, Traced.UP)
    gate = found[Traced.GATE].astype(np.float64)
    take(Traced.GATED, gate / (1 + np.exp(-gate)) * found[Traced.UP])
    multiply(Traced.DOWN)
    take(Traced.OUT, middle + found[Traced.DOWN])
    return [found[step] for step in Traced]


def _normed(row: Floats, weights: Floats) -> NDArray[np.float64]:
    wide = row.astype(np.float64)
    return wide / np.sqrt((wide * wide).mean() + SHAPE.epsilon) * weights  # type: ignore[no-any-return]


def _turned(row: Floats, position: int) -> NDArray[np.float64]:
    """Rotate heads by halves."""
    half = SHAPE.rotated // 2
    angles = position * SHAPE.base ** (-np.arange(half) / half)
    one, other = np.split(row.astype(np.float64).reshape(-1, SHAPE.head_width), 2, axis=1)
    cosines, sines = np.cos(angles), np.sin(angles)
    return np.concatenate([one * cosines - other * sines, one * sines + other * cosines], axis=1)


def _sign(traces: list[list[list[Floats]]], computed: list[Computed]) -> OpenedTrace:
    """Sign for the last row, and for the rows that went in and out."""
    received, sent = Rows(keep=True), Rows(keep=True)
    outs = [steps[-1] for steps in traces[-1]]
    for kept, rows in ((received, _given()), (sent, outs)):
        for at, row in enumerate(rows):
            kept.put(at, 1, row.astype("<f4").tobytes(), regime=Regime.NARROW)
    return opened(
        received,
        sent,
        computed,
        position=COUNT - 1,
        count=COUNT,
        regime=Regime.NARROW,
        signer=STAGE,
    )


@cache
def _honest() -> tuple[list[list[list[Floats]]], list[Computed]]:
    traces, computed = _compute(lambda *given: given[-1])
    opening = _sign(traces, computed)
    check_roots(opening)
    keys = dict(enumerate(layer.key for layer in _layers()))
    verdict = judge_row(opening, SHAPE, keys)
    assert verdict.held, verdict
    return traces, computed


def _changed(chance: Random, numbers: Floats, least: float) -> Floats:
    """Change numbers by at least a part of their size, or make them nonsense."""
    many = np.random.default_rng(chance.randrange(1 << 30))
    size, found = float(np.linalg.norm(numbers)), numbers.copy()
    share = least * 10 ** chance.uniform(0, 4)
    match chance.randrange(8):
        case 0:
            found[chance.randrange(found.size)] += np.float32(share * size)
        case 1:
            found *= np.float32(1 + share)
        case 2:
            found = -found
        case 3:
            found = np.roll(found, chance.randrange(1, found.size))
        case 4:
            odd = (np.nan, np.inf, -np.inf, 3e38, -3e38, 1e30)
            found[chance.randrange(found.size)] = chance.choice(odd)
        case 5:
            found = np.zeros_like(found)
        case _:
            noise = many.standard_normal(found.size)
            found = (found + share * size * noise / np.linalg.norm(noise)).astype(np.float32)
    return found


def _least(step: Traced) -> float:
    """How much of a step is changed at least: ten times what is left to honest ones."""
    return 2e-2 if step is Traced.ATTENTION else 1e-3


def make_signed(chance: Random) -> OpenedTrace:
    """Make a false opening that its stage has signed."""
    traces, computed = _honest()
    at, step = chance.randrange(LAYERS), chance.choice(list(Traced))
    place = list(Traced).index(step)
    given, steps, keys, values = computed[at]
    with np.errstate(all="ignore"):
        match chance.randrange(6):
            case 0 | 1:  # a false step, and from there on the truth
                only_last = chance.random() < 0.5

                def change(position: int, layer: int, now: Traced, numbers: Floats) -> Floats:
                    is_it = (layer, now) == (at, step) and not (only_last and position < COUNT - 1)
                    return _changed(chance, numbers, _least(step)) if is_it else numbers

                traces, computed = _compute(change)
                return _sign(traces, computed)
            case 2:  # one step shown otherwise than it was computed
                numbers = np.frombuffer(steps[place], "<f4")
                false = _changed(chance, numbers, _least(step)).tobytes()
            case 3:  # of any length, or what another step or layer gave
                others = [*steps, *computed[1 - at][1], steps[place][:-4], steps[place] + bytes(4)]
                false = chance.choice([each for each in others if each != steps[place]])
            case 4:  # K and V
                cells = [keys, values]
                which = chance.randrange(2)
                rows = np.frombuffer(cells[which], "<f2").astype(np.float32)
                cells[which] = _changed(chance, rows, 0.3).astype("<f2").tobytes()
                if chance.random() < 0.2:
                    cells[which] = cells[which][: -2 * COUNT] or cells[which]
                return _sign(traces, _with(computed, at, (given, steps, *cells)))
            case _:  # the row that went in
                row = _changed(chance, np.frombuffer(given, "<f4"), 1e-3).tobytes()
                return _sign(traces, _with(computed, at, (row, steps, keys, values)))
    shown = (*steps[:place], false, *steps[place + 1 :])
    return _sign(traces, _with(computed, at, (given, shown, keys, values)))


def _with(computed: list[Computed], at: int, layer: tuple[object, ...]) -> list[Computed]:
    return [*computed[:at], layer, *computed[at + 1 :]]  # type: ignore[list-item]


def judge_signed(opening: OpenedTrace) -> None:
    """A false step is found, whatever was signed for."""
    if opening.pledge.trace[0] < 16:
        opening = decode(encode(opening))
    try:
        check_roots(opening)
    except BadOpening:
        return
    keys = dict(enumerate(layer.key for layer in _layers()))
    assert judge_row(opening, SHAPE, keys).fault
