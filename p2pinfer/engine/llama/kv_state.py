"""A session's K and V rows, in the bytes that llama.cpp writes a session's state in.

Read in its ``llama-kv-cache.cpp``, as 32-bit words, of a cache whose V is not transposed:

    magic, session, streams    each stream then begins with how many cells of the session it has
    position, 1, session       for each cell; cells are in the order of the stream's memory
    0, layers
    type, row bytes (2 words), rows    K of each layer, then V of each layer
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
        self._values: list[Words] = []
        self.values_type = ""
        """In which numbers V is kept; K is in float16."""
        at += 2
        if transposed or not self._is_known:
            raise EngineError("llama.cpp keeps a session's cells in another way than is known here")
        for found in (self._keys, self._values):
            for _ in range(self.layers):
                kind, row_words = int(words[at]), int(words[at + 1]) // 4
                end = at + 3 + row_words * self.positions
                self.values_type = _GGML_TYPES.get(kind, "")
                if not self.values_type or words[at + 2] or end > len(words):
                    raise EngineError(
                        "llama.cpp keeps a session's cells in numbers of another type"
                    )
                found.append(words[at + 3 : end].reshape(self.positions, row_words))
                at = end

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
