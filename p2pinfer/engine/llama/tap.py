"""Reading one node of llama.cpp's graph through its evaluation callback, cheaply."""

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

from p2pinfer.core.errors import EngineError

_EvalCallback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)
"""``ggml_backend_sched_eval_callback`` without its last two arguments: whether it asks or tells,
which the order of calls says too, and a pointer of our own. A C callee may ignore the last ones."""


class Tap:
    """Stops a graph behind one node, and reads what the node holds.

    Args:
        ggml: the loaded libggml-base.

    A graph has some 30 nodes a layer, and each is asked for. So the first decode of a shape runs a
    Python function that finds the node by its name; later ones only have to say no so many times,
    then yes (this one), then no (do not go on), which an iterator does without any bytecode.
    """

    def __init__(self, ggml: ctypes.CDLL) -> None:
        self._get_name, self._get_data = ggml.ggml_get_name, ggml.ggml_get_data
        self._get_name.restype, self._get_data.restype = ctypes.c_char_p, ctypes.c_void_p
        self._get_name.argtypes = self._get_data.argtypes = [ctypes.c_void_p]
        self._answer = partial(self._look)
        self.callback = _EvalCallback(self._answer)
        self._found: dict[tuple[bytes, int, int], tuple[list[bool], int]] = {}
        self._node, self._key = b"", (b"", 0, 0)
        self._asked = self._tensor = 0

    def arm(self, node: bytes, rows: int, sessions: int) -> None:
        """Prepare for a decode of so many rows that is to stop behind a node (``l_out-9``)."""
        self._node, self._key = node, (node, rows, sessions)
        if found := self._found.get(self._key):
            answers, self._tensor = found
            self._retarget(next, iter(answers))
        else:
            self._asked = self._tensor = 0
            self._retarget(self._look)

    def _retarget(self, function: Callable[..., Any], *arguments: Any) -> None:
        state: tuple[Any, ...] = (function, arguments, {}, None)
        self._answer.__setstate__(state)  # type: ignore[attr-defined] # what unpickling one calls

    def _look(self, tensor: int) -> bool:
        """Answer for a node while the right one is still being looked for."""
        if self._tensor:
            return False  # told that it is computed: do not go on
        self._asked += 1
        if self._get_name(tensor) != self._node:
            return False
        self._tensor = tensor
        return True

    def read(self, size: int) -> bytes:
        """Return the node's data after a decode; raises EngineError if the node is not there."""
        tensor = self._tensor
        if not tensor or self._get_name(tensor) != self._node:
            self._found.clear()
            raise EngineError(f"llama.cpp's graph has no {self._node.decode()} in its place")
        if self._key not in self._found:
            self._found[self._key] = ([False] * (self._asked - 1) + [True, False], tensor)
        return ctypes.string_at(self._get_data(tensor), size)
