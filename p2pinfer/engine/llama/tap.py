"""Reading one node of llama.cpp's graph through its evaluation callback, cheaply."""

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

from p2pinfer.core.errors import EngineError

_EvalCallback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)
"""``ggml_backend_sched_eval_callback`` without its last two arguments: whether the call asks or
reports, which the order of calls shows too, and a user pointer. A C callee may ignore them."""


class Tap:
    """Stops a graph after one node, and reads the node's data.

    Args:
        ggml: the loaded libggml-base.

    A graph has about 30 nodes per layer, and the callback is called for each. So the first decode
    of a shape runs a Python function that finds the node by its name. Later decodes know how many
    nodes come before it: the answers are that many times no, then yes (this one), then no (stop
    here), which an iterator gives without running any bytecode.
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
        """Prepare for a decode of ``rows`` rows that is to stop after a node (``l_out-9``)."""
        self._node, self._key = node, (node, rows, sessions)
        if found := self._found.get(self._key):
            answers, self._tensor = found
            self._retarget(next, iter(answers))
        else:
            self._asked = self._tensor = 0
            self._retarget(self._look)

    def _retarget(self, function: Callable[..., Any], *arguments: Any) -> None:
        state: tuple[Any, ...] = (function, arguments, {}, None)
        self._answer.__setstate__(state)  # type: ignore[attr-defined] # as unpickling does

    def _look(self, tensor: int) -> bool:
        """Answer the callback for a node, while the wanted one is still being searched for."""
        if self._tensor:
            return False  # it has been computed: stop here
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
