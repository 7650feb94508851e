"""A session's K and V rows, in the bytes that llama.cpp writes a session's state in.

Read in its ``llama-kv-cache.cpp``, as 32-bit words:

    magic, session, streams    each stream then begins with how many cells of the session it has
    position, 1, session       for each cell; cells are in the order of the stream's memory
    is V transposed, layers
    type, row bytes (2 words), rows    K of each layer, then V of each layer
    type, number bytes, row length, columns    V instead, where it is transposed: without flash
                                               attention
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from p2pinfer.core.errors import EngineError

HEAD_WORDS: Final = 3
"""Two that name its kind, and the number of KV streams."""

_CELL_WORDS: Final = 3

_GGML_TYPES: Final = {1: "f16", 30: "bf16"}

Words = NDArray[np.uint32]


class KvState:
    """All cells of one session.

    Args:
        words: the head, the one stream that has cells, and zeros for as many streams as may follow.

    Raises:
        EngineError: the words are not what this module knows.
    """

    def __init__(self, words: Words) -> None:
        self.words = words
        self.positions = int(words[HEAD_WORDS])
        at = HEAD_WORDS + 1
        cells = words[at : at + _CELL_WORDS * self.positions].reshape(-1, _CELL_WORDS)
        order = np.argsort(cells[:, 0], kind="stable")
        self._is_known = bool(
            len(cells) == self.positions
            and (cells[order, 0] == np.arange(self.positions)).all()
            and (cells[:, 1] == 1).all()
        )
        self._order = None if (order == np.arange(self.positions)).all() else order
        at += _CELL_WORDS * self.positions
        transposed, self.layers = (int(word) for word in words[at : at + 2])
        self._keys: list[Words] = []
        self._values: list[NDArray[np.generic]] = []
        self.attention = ""
        """How V is kept and attention is computed, as ``core.attention.ATTENTIONS`` has it."""
        at += 2
        if transposed not in (0, 1) or not self._is_known:
            raise EngineError("llama.cpp keeps a session's cells in another way than is known here")
        for _ in range(self.layers):
            found, at = self._take_rows(at)
            self._keys.append(found)
        for _ in range(self.layers):
            values, at = self._take_columns(at) if transposed else self._take_rows(at)
            self._values.append(values)

    def _take_rows(self, at: int) -> tuple[Words, int]:
        """Return a layer's rows that begin at a word, and where they end."""
        kind, size, size_above = (int(word) for word in self.words[at : at + 3])
        end = at + 3 + size // 4 * self.positions
        self.attention = _GGML_TYPES.get(kind, "")
        if not self.attention or size_above or end > len(self.words):
            raise EngineError("llama.cpp keeps a session's cells in numbers of another type")
        return self.words[at + 3 : end].reshape(self.positions, size // 4), end

    def _take_columns(self, at: int) -> tuple[NDArray[np.uint16], int]:
        """Return rows of float16 that lie there column by column, and where they end."""
        kind, size, width = (int(word) for word in self.words[at : at + 3])
        end = at + 3 + width * self.positions // 2
        if _GGML_TYPES.get(kind) != "f16" or size != 2 or width % 2 or end > len(self.words):
            raise EngineError("llama.cpp keeps a session's cells in numbers of another type")
        self.attention = "plain"
        numbers = self.words[at + 3 : end].view(np.uint16)
        return numbers.reshape(width, self.positions).T, end

    def rows(self, layer: int, first: int, end: int) -> tuple[bytes, bytes]:
        """Return a layer's K and V rows at the positions ``first:end``, as the cache holds them.

        Raises:
            EngineError: there is no such layer, or there are no such positions.
        """
        if not (0 <= layer < self.layers and 0 <= first <= end <= self.positions):
            raise EngineError(
                f"layer {layer}, positions {first} to {end}: a copy of {self.positions} positions"
                f" of {self.layers} layers has none such"
            )
        if self._order is None:
            return self._keys[layer][first:end].tobytes(), self._values[layer][first:end].tobytes()
        cells = self._order[first:end]
        return self._keys[layer][cells].tobytes(), self._values[layer][cells].tobytes()
