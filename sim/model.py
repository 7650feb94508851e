"""A model without arithmetic whose every row proves how it was made.

Of each position there is a link: a keyed BLAKE3 of its token and the link before. A row carries the
link of the position before, and its own plus a key for each layer that ran. A layer adds its key,
which differs from regime to regime, if the link before is the one that its cache holds;
otherwise what comes out, there and at every later position, is noise. So a token depends on every
token before it, on every layer having run once in the right regime, and on every cache being
whole, but not on where the model was cut; and the right answer is computed without any layers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from p2pinfer.core.regimes import Regime

WIDTH = 8
"""Numbers in a row: two links of four 16-bit numbers each, as whole float32 values."""

ROW_BYTES = 4 * WIDTH
MASK = (1 << 64) - 1
ORIGIN = 0x5EED
"""The link before the first position."""

Links = npt.NDArray[np.uint64]


def _digest(*parts: int) -> int:
    data = b"".join(part.to_bytes(8, "little") for part in parts)
    return int.from_bytes(blake3(data).digest(8), "little")


def link_of(before: int, token: int) -> int:
    """Return the link of a position."""
    return _digest(1, before, token)


def pack(before: Links, own: Links, rounding: float = 0.0) -> bytes:
    """Return rows as on the wire; a fraction below one only marks which class computed them."""
    lanes = np.stack([before, own], axis=1).view("<u2").astype("<f4")
    return (lanes + np.float32(rounding)).tobytes()


def unpack(rows: bytes) -> tuple[Links, Links]:
    """Return the links of rows; invalid numbers give some link, which is then wrong."""
    lanes = np.frombuffer(rows, "<f4")
    whole = np.clip(lanes, 0, 65535).astype("<u2").reshape(-1, WIDTH)
    links = whole.view("<u8")
    return links[:, 0], links[:, 1]


def damage_of(said: Sequence[int] | Links, links: Sequence[int] | Links) -> int:
    """Return what a cache adds to the last of some positions: nothing while it is whole.

    Args:
        said: the links that came with the positions, as those before theirs.
        links: the positions' own.
    """
    damage, kept = 0, ORIGIN
    for before, own in zip(map(int, said), map(int, links), strict=True):
        if damage or before != kept:
            damage = _digest(4, damage, before, kept) or 1
        kept = own
    return damage


@dataclass(frozen=True)
class VirtualModel:
    """A key for each of ``layers`` layers."""

    layers: int
    vocabulary: int = 32_000

    def __post_init__(self) -> None:
        keys = {each: [_digest(2, each, layer) for layer in range(self.layers)] for each in Regime}
        sums = {w: [0, *accumulate(k, lambda a, b: (a + b) & MASK)] for w, k in keys.items()}
        object.__setattr__(self, "_sums", sums)

    def sum(self, end: int, *, regime: Regime) -> int:
        """Return what the layers before ``end`` add to a link."""
        sums: dict[Regime, list[int]] = self._sums  # type: ignore[attr-defined]
        return sums[regime][end]

    def pick(self, own: int, regime: Regime) -> int:
        """Return the token that the last layer's row stands for; 0 is none.

        It is the same whether a prompt was read wide or in blocks.
        """
        if regime is Regime.BLOCK:
            of_wide = self.sum(self.layers, regime=Regime.WIDE)
            own = (own - self.sum(self.layers, regime=regime) + of_wide) & MASK
        return 1 + _digest(3, own) % (self.vocabulary - 1)

    def answer(self, prompt: Sequence[int]) -> Iterator[int]:
        """Yield the right answer to a prompt, without end."""
        link = ORIGIN
        for token in prompt:
            link = link_of(link, token)
        regime = Regime.WIDE
        while True:
            token = self.pick((link + self.sum(self.layers, regime=regime)) & MASK, regime)
            yield token
            link, regime = link_of(link, token), Regime.NARROW


class Cache:
    """What a range of layers remembers of one session."""

    def __init__(self, model: VirtualModel, first: int, end: int) -> None:
        self._model, self._first, self._end = model, first, end
        self._links = [ORIGIN]
        self._damage = [0]
        self._said: list[int] = []

    @property
    def length(self) -> int:
        """Positions that are held."""
        return len(self._links) - 1

    def inherit(self, parent: "Cache", length: int) -> None:
        """Remember the first positions of another session."""
        assert length <= parent.length
        self._links = parent._links[: length + 1]
        self._damage = parent._damage[: length + 1]
        self._said = parent._said[:length]

    def held(self, positions: int) -> tuple[list[int], list[int]]:
        """Return the links that came with the first positions, and the positions' own."""
        return self._said[:positions], self._links[1 : positions + 1]

    def run(self, position: int, rows: bytes, *, regime: Regime) -> tuple[Links, Links]:
        """Return the links of what comes out; drops what was held from ``position`` on."""
        assert position <= self.length
        del self._links[position + 1 :], self._damage[position + 1 :], self._said[position:]
        before, own = unpack(rows)
        sums = (
            self._model.sum(self._first, regime=regime),
            self._model.sum(self._end, regime=regime),
        )
        links = own - np.uint64(sums[0])
        damage = self._damage[-1]
        held = np.concatenate([np.array([self._links[-1]], np.uint64), links[:-1]])
        if damage == 0 and (held == before).all():
            self._damage += [0] * len(links)
            out = own + np.uint64((sums[1] - sums[0]) & MASK)
        else:
            added = []
            for said, kept in zip(before.tolist(), held.tolist(), strict=True):
                if damage or said != kept:
                    damage = _digest(4, damage, said, kept) or 1
                added.append(damage)
            self._damage += added
            out = own + np.uint64((sums[1] - sums[0]) & MASK) + np.array(added, np.uint64)
        self._links += links.tolist()
        self._said += before.tolist()
        return before, out
