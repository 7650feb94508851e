"""What an opened row shows: whether each step of each layer is what the one before it gives.

Every step is computed again from numbers that the stage opened and signed for, so that differences
between kernels do not add up from step to step. Products are checked by secret projections, which
a peer that holds the layer replaces by the matrix itself; all else is computed.
"""

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
from attrs import evolve, field, frozen
from numpy.typing import NDArray

from p2pinfer.core.attention import ATTENTIONS, Attended, Kernel
from p2pinfer.core.attention_fit import (
    ATTENTION_MAX,
    PROVEN_ATTENTION_MAX,
    OpenedHeads,
    apart_after_ties,
    compute_attention,
)
from p2pinfer.core.kv_root import LAST_TAIL
from p2pinfer.core.layer_key import (
    ATTENTION_NORM,
    FFN_NORM,
    KEY_BIAS,
    KEY_NORM,
    QUERY_BIAS,
    QUERY_NORM,
    VALUE_BIAS,
    LayerKey,
    LayerShape,
)
from p2pinfer.core.opening import OpenedLayer, OpenedTrace, Pledge
from p2pinfer.core.projection import RESIDUAL_MAX
from p2pinfer.core.traced import LINEAR, Traced

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

STEP_MAX: Final = 1e-5
"""Of norms, rotation, gates and sums, relative to their output. Honest ones lie at most 4e-7 from
it: float32 in another order."""

KNOWN_MACHINES: Final = frozenset(("x86_64", "AMD64"))
"""Whose kernels are known here. Others round activations from another quotient, or add attention up
in float16 alone, and an honest row of theirs would seem false."""

_FLOAT_NOISE: Final = 3e-7
"""Of a rotated number, relative to its pair: a few roundings of float32."""

ROUNDING_SLACK: Final = 1e-5
"""How far a cached number may lie past half a unit in its last place, relative to its pair of
numbers: what is rounded is itself known to float32's noise."""

_TYPICAL: Final = 1e-3
"""Numbers smaller than this part of the typical one are judged as if they were as large."""

RECEIVED, SENT, CACHED_KEY, CACHED_VALUE = "received row", "sent row", "cached K", "cached V"
"""Steps beside those that are traced."""


@frozen
class Fault:
    """The first step that is not what the one before it gives."""

    layer: int
    """In the whole model."""
    step: str
    apart: float
    """Relative to what it should be; infinity where sizes are wrong or numbers are not finite."""

    @property
    def is_provable(self) -> bool:
        """Whether it is enough for an accusation."""
        return self.step != Traced.ATTENTION or self.apart > PROVEN_ATTENTION_MAX

    def text(self) -> str:
        """Describe it in a few words."""
        how = "not of its form" if np.isinf(self.apart) else f"{100 * self.apart:.3g} % apart"
        return f"layer {self.layer}: {self.step} is {how}"


@frozen
class Verdict:
    """What came out of one opened row."""

    fault: Fault | None
    layers: int
    """How many were checked, up to the fault."""
    with_attention: int
    """Of these, how many showed K and V, so that attention was computed again."""
    worst: Mapping[str, float]
    """How far each step was apart at most."""
    used: Mapping[str, float] = field(factory=dict)
    """The largest share of its tolerance that each step took, where it has one."""

    @property
    def held(self) -> bool:
        """Whether all that was checked is true."""
        return self.fault is None


def can_be_judged(pledge: Pledge) -> bool:
    """Whether the stage's kernels are known here; it says itself what they are."""
    return pledge.machine in KNOWN_MACHINES


def cut_to(opening: OpenedTrace, fault: Fault) -> OpenedTrace:
    """Return the least part of an opening that shows a fault."""
    wanted = {fault.layer}
    if fault.step == RECEIVED and fault.layer != opening.receipt.first:
        wanted.add(fault.layer - 1)
    layers = [each for each in opening.layers if each.layer in wanted]
    if fault.step not in (CACHED_KEY, CACHED_VALUE, Traced.ATTENTION):
        layers = [evolve(each, keys=b"", values=b"", tail=LAST_TAIL) for each in layers]
    return evolve(opening, layers=tuple(layers))


def judge_row(opening: OpenedTrace, shape: LayerShape, keys: Mapping[int, LayerKey]) -> Verdict:
    """Check every step of every opened layer, one after the other.

    Args:
        opening: whose roots and signatures have been checked, of a known machine.
        shape: of the model's layers.
        keys: by the layer's number in the whole model, for each opened layer.
    """
    with np.errstate(all="ignore"):  # a cheat's numbers may be anything; what comes out is judged
        return _judged(opening, shape, keys)


def _judged(opening: OpenedTrace, shape: LayerShape, keys: Mapping[int, LayerKey]) -> Verdict:
    pledge = opening.pledge
    heads = {
        each.layer: _heads_of(pledge, each, shape, keys[each.layer]) for each in opening.layers
    }
    kernel, attention = compute_attention(opening, heads, shape)
    worst: dict[str, float] = {}
    used: dict[str, float] = {}
    fault, checked = None, 0
    for layer in opening.layers:
        checked += 1
        at = layer.layer
        found = _steps(opening, layer, shape, keys[at], heads[at], attention.get(at), kernel)
        for step, apart, most in found:
            worst[step] = max(apart, worst.get(step, 0.0))
            if most:
                used[step] = max(apart / most, used.get(step, 0.0))
            if not apart <= most:
                fault = Fault(layer.layer, step, apart)
                break
        if fault:
            break
    seen = sum(1 for each in opening.layers[:checked] if each.keys)
    return Verdict(fault, checked, seen, worst, used)


_Found = tuple[str, float, float]
"""A step, how far it is apart, and how far it may be."""


def _steps(
    opening: OpenedTrace,
    layer: OpenedLayer,
    shape: LayerShape,
    key: LayerKey,
    heads: "OpenedHeads | None",
    attention: Attended | None,
    kernel: Kernel,
) -> Iterator[_Found]:
    given, norm = layer.residual, key.vectors[ATTENTION_NORM]
    if given.shape != norm.shape:
        yield RECEIVED, np.inf, 0.0
        return
    yield from _joints(opening, layer)
    yield _close(layer, Traced.ATTENTION_NORM, _rms_norm(given, norm, shape.epsilon))
    for step in (Traced.QUERY, Traced.KEY, Traced.VALUE):
        yield _product(layer, step, key)
    if layer.keys:
        apart = np.inf if heads is None else _past_rounding(heads.keys[-1], heads.key, "f16")
        yield CACHED_KEY, apart, ROUNDING_SLACK
        kind = ATTENTIONS[opening.pledge.values].values
        apart = np.inf if heads is None else _past_rounding(heads.values[-1], heads.value, kind)
        yield CACHED_VALUE, apart, ROUNDING_SLACK
        apart, row = np.inf, layer.step(Traced.ATTENTION)
        if heads is not None and attention is not None and row.size == attention.rows.size:
            row = row.reshape(attention.rows.shape)
            apart = apart_after_ties(heads, row, attention, shape, opening.pledge, kernel)
        yield Traced.ATTENTION, apart, ATTENTION_MAX
    yield _product(layer, Traced.ATTENTION_OUT, key)
    out = layer.step(Traced.ATTENTION_OUT)
    if out.shape != given.shape:
        yield Traced.ATTENTION_OUT, np.inf, STEP_MAX
        return
    middle = given + out
    yield _close(layer, Traced.FFN_NORM, _rms_norm(middle, key.vectors[FFN_NORM], shape.epsilon))
    yield _product(layer, Traced.GATE, key)
    yield _product(layer, Traced.UP, key)
    gate, up = layer.step(Traced.GATE), layer.step(Traced.UP)
    yield _close(layer, Traced.GATED, _gated(gate, up) if gate.shape == up.shape else None)
    yield _product(layer, Traced.DOWN, key)
    down = layer.step(Traced.DOWN)
    yield _close(layer, Traced.OUT, middle + down if middle.shape == down.shape else None)


def _joints(opening: OpenedTrace, layer: OpenedLayer) -> Iterator[_Found]:
    """Check what goes into a layer and out of the last one, which has to be the same bits."""
    receipt, numbers = opening.receipt, "<f2" if opening.pledge.terms.dtype == "f16" else "<f4"
    if layer.layer == receipt.first:
        received, size = opening.row.received, np.dtype(numbers).itemsize
        is_whole = len(received) * 4 == len(layer.given) * size
        row = np.frombuffer(received, numbers).astype("<f4").tobytes() if is_whole else b""
        yield RECEIVED, 0.0 if row == layer.given else np.inf, 0.0
    if layer.layer == receipt.end - 1:
        sent = layer.step(Traced.OUT).astype(numbers).tobytes()
        yield SENT, 0.0 if sent == opening.row.sent else np.inf, 0.0
    before = next((each for each in opening.layers if each.layer == layer.layer - 1), None)
    if before:
        is_same = before.step(Traced.OUT).tobytes() == layer.given
        yield RECEIVED, 0.0 if is_same else np.inf, 0.0


def _product(layer: OpenedLayer, step: Traced, key: LayerKey) -> _Found:
    given, name = LINEAR[step]
    apart = key.matrices[name].residual(layer.step(given), layer.step(step))
    return step, apart, RESIDUAL_MAX


def _heads_of(
    pledge: Pledge, layer: OpenedLayer, shape: LayerShape, key: LayerKey
) -> OpenedHeads | None:
    """Return what attention takes; None if the layer shows no K and V, or they are misshapen."""
    keys = _cached_rows(layer.keys, pledge.position + 1, shape, "f16")
    kind = ATTENTIONS[pledge.values].values
    values = _cached_rows(layer.values, pledge.position + 1, shape, kind)
    steps = (Traced.QUERY, Traced.KEY, Traced.VALUE)
    rows = [layer.step(each) for each in steps]
    width = shape.kv_heads * shape.head_width
    sizes = tuple(each.size for each in rows)
    if keys is None or values is None or sizes != (shape.heads * shape.head_width, width, width):
        return None
    query = _split(rows[0], shape, key.vectors.get(QUERY_BIAS), key.vectors.get(QUERY_NORM))
    new = _split(rows[1], shape, key.vectors.get(KEY_BIAS), key.vectors.get(KEY_NORM))
    value = _split(rows[2], shape, key.vectors.get(VALUE_BIAS), None)
    # A C library may round the power that angles are made of the other way.
    choices = [_angles(shape, pledge.position, by) for by in (0, 1, -1)]
    turned = [_turned(new, shape, angles) for angles in choices]
    apart = [_past_rounding(keys[-1], each, "f16") for each in turned]
    fitting = [at for at, past in enumerate(apart) if past <= ROUNDING_SLACK]
    fitting = fitting or [apart.index(min(apart))]
    queries = tuple(_turned(query, shape, choices[at]) for at in fitting)
    noise = _FLOAT_NOISE * _pair_sizes(query, shape)
    return OpenedHeads(queries, noise, turned[fitting[0]], value, keys, values)


def _cached_rows(data: bytes, count: int, shape: LayerShape, kind: str) -> Floats | None:
    """Return cached rows as numbers: positions by heads by numbers of a head; None if misshapen."""
    if len(data) != 2 * count * shape.kv_heads * shape.head_width:
        return None
    if kind == "bf16":
        words = np.frombuffer(data, "<u2").astype(np.uint32) << 16
        numbers = words.view(np.float32)
    else:
        numbers = np.frombuffer(data, "<f2").astype(np.float32)
    return numbers.reshape(count, shape.kv_heads, shape.head_width)


def _split(row: Floats, shape: LayerShape, bias: Floats | None, norm: Floats | None) -> Doubles:
    """Return a product as heads, with bias and norm."""
    biased = row if bias is None else row + bias
    heads = biased.reshape(-1, shape.head_width).astype(np.float64)
    return heads if norm is None else _rms_norm(heads, norm, shape.epsilon)


def _turned(heads: Doubles, shape: LayerShape, angles: Doubles) -> Doubles:
    """Rotate heads, heads by numbers of a head, as RoPE does."""
    cosines, sines = np.cos(angles), np.sin(angles)
    turned, part = heads.copy(), heads[:, : shape.rotated]
    half = shape.rotated // 2
    if shape.is_halved:
        one, other = slice(0, half), slice(half, shape.rotated)
    else:
        one, other = slice(0, shape.rotated, 2), slice(1, shape.rotated, 2)
    turned[:, one] = part[:, one] * cosines - part[:, other] * sines
    turned[:, other] = part[:, one] * sines + part[:, other] * cosines
    return turned


def _pair_sizes(heads: Doubles, shape: LayerShape) -> Doubles:
    """Return for each number of a head how long the pair is that RoPE turns it in."""
    sizes, half = np.abs(heads), shape.rotated // 2
    if shape.is_halved:
        one, other = slice(0, half), slice(half, shape.rotated)
    else:
        one, other = slice(0, shape.rotated, 2), slice(1, shape.rotated, 2)
    sizes[:, one] = sizes[:, other] = np.hypot(heads[:, one], heads[:, other])
    return sizes


def _angles(shape: LayerShape, position: int, rounded: int) -> Doubles:
    """Return the angle of each pair; ggml multiplies from one to the next in float32.

    ``rounded``: by how many units in the last place the power is off.
    """
    exponent = np.float32(-2) / np.float32(shape.rotated)
    power = np.float32(float(np.float32(shape.base)) ** float(exponent))
    for _ in range(abs(rounded)):
        power = np.nextafter(power, np.float32(np.inf * rounded))
    steps = np.full(shape.rotated // 2, power, np.float32)
    steps[0] = position
    angles = np.multiply.accumulate(steps)
    if shape.factors is not None:
        angles = angles / shape.factors
    return (angles * np.float32(shape.stretch)).astype(np.float64)


def _rms_norm(numbers: NDArray[np.floating], weights: Floats, epsilon: float) -> Doubles:
    wide = numbers.astype(np.float64)
    size = np.sqrt((wide * wide).mean(axis=-1, keepdims=True) + epsilon)
    normed: Doubles = wide / size * weights
    return normed


def _gated(gate: Floats, up: Floats) -> Doubles:
    """Return SwiGLU."""
    wide = gate.astype(np.float64)
    gated: Doubles = wide / (1 + np.exp(-wide)) * up
    return gated


def _close(layer: OpenedLayer, step: Traced, true: NDArray[np.floating] | None) -> _Found:
    """Compare number by number: a large one must not hide what is done to small ones."""
    found = layer.step(step).astype(np.float64)
    if true is None or found.shape != true.shape:
        return step, np.inf, STEP_MAX
    if not (np.isfinite(found).all() and np.isfinite(true).all()):
        return step, np.inf, STEP_MAX
    size = np.abs(true) + _TYPICAL * np.sqrt((true * true).mean())
    apart = np.abs(found - true)
    return step, float((apart / np.where(size > 0, size, 1)).max()), STEP_MAX


def _past_rounding(cached: Floats, true: Doubles, kind: str) -> float:
    """Return how far cached numbers lie past the rounding of the true ones, relative to these."""
    if not (np.isfinite(cached).all() and np.isfinite(true).all()):
        return np.inf
    exponents = np.frexp(true)[1]
    digits, least = (8, -133) if kind == "bf16" else (11, -24)
    half_units = np.ldexp(0.5, np.maximum(exponents - digits, least))
    past = np.abs(cached - true) - half_units
    sizes = np.linalg.norm(true, axis=-1, keepdims=True)
    return float(np.maximum(past / np.where(sizes > 0, sizes, 1), 0).max())
