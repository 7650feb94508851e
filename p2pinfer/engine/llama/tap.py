"""Reading and writing nodes of llama.cpp's graph through its evaluation callback, cheaply."""

import ctypes
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, repeat
from typing import Any, NamedTuple

from p2pinfer.core.errors import EngineError
from p2pinfer.engine.llama.ggml import Ggml

_EvalCallback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)
"""``ggml_backend_sched_eval_callback`` without its last two arguments: whether the call asks or
reports, which the order of calls shows too, and a user pointer. A C callee may ignore them."""


class Decode(NamedTuple):  # quickly made, once per token
    """Decodes that are alike have the same graph."""

    node: bytes
    """Behind which to stop (``l_out-9``); empty to go on to the end."""
    rows: int
    sessions: int
    into: bytes = b""
    """The node that rows are written into; empty for none."""


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the two nodes are, 0 while unknown, and how many are asked for before each."""

    into: int = 0
    asked_before_into: int = 0
    node: int = 0
    asked_before_node: int = 0


class Tap:
    """Writes rows into one node of a graph, stops after another, and reads that one's data.

    Args:
        ggml: the loaded ggml, which reads and writes nodes wherever they are, on a GPU too.

    A graph has about 30 nodes per layer, and the callback is called for each. So the first decode
    of a shape runs a Python function that finds the nodes by their names. Later decodes know how
    many nodes come before each: the answers are that many times no, then yes (this one), and at
    last no (stop here), which iterators give without running any bytecode.

    A decode that pauses is always looked at: it takes long, and its pauses are worth it.
    """

    def __init__(self, ggml: Ggml) -> None:
        self._get_name, self._ggml = ggml.name_of, ggml
        self._answer = partial(self._look)
        self.callback = _EvalCallback(self._answer)
        self._found: dict[Decode, _Places] = {}
        self._decode, self._places = Decode(b"", 0, 0), _Places()
        self._source = (0, 0)
        self._asked = 0
        self._is_told = False
        self._pause: Callable[[], None] | None = None
        self._pauses: frozenset[bytes] = frozenset()
        self._is_pausing = False
        self._failure: Exception | None = None

    def arm(
        self,
        decode: Decode,
        source: tuple[int, int] = (0, 0),
        pause: Callable[[], None] | None = None,
        pauses: frozenset[bytes] = frozenset(),
    ) -> None:
        """Prepare for a decode.

        Args:
            decode: what it is like, and which nodes are wanted.
            source: where the rows are that are written into ``decode.into``, and their bytes.
            pause: called in the middle of the decode, which goes on when it returns.
            pauses: the nodes behind which it is called.
        """
        self._decode, self._source = decode, source
        self._pause, self._pauses, self._failure = pause, pauses, None
        if pause:
            self._places, self._asked = _Places(), 0
            self._is_told = self._is_pausing = False
            self._retarget(self._look)
        elif found := self._found.get(decode):
            self._places = found
            self._retarget(next, self._answers(found))
        else:
            self._places, self._asked, self._is_told = _Places(), 0, False
            self._retarget(self._look)

    def lend(self, answer: Callable[[int], bool]) -> None:
        """Have another function answer for the nodes of the next decode."""
        self._retarget(answer)

    def _retarget(self, function: Callable[..., Any], *arguments: Any) -> None:
        state: tuple[Any, ...] = (function, arguments, {}, None)
        self._answer.__setstate__(state)  # type: ignore[attr-defined] # as unpickling does

    def _answers(self, places: _Places) -> Iterator[bool]:
        """Yield the answers of a decode whose nodes are known."""
        parts: list[Iterable[bool]] = []
        if places.into:
            write = map(self._write, (places.into,))
            parts += [repeat(False, places.asked_before_into), (True,), write]
        if places.node:
            parts += [repeat(False, places.asked_before_node), (True, False)]
        else:
            parts.append(repeat(False))
        return chain.from_iterable(parts)

    def _look(self, tensor: int) -> bool:
        """Answer the callback for a node, while the wanted ones are still being searched for."""
        places = self._places
        if self._is_told:
            self._is_told = False
            if self._is_pausing:
                return self._stop_for_a_moment()
            if places.node:
                return False  # it is computed: do not go on
            return self._write(tensor)
        self._asked += 1
        name = self._get_name(tensor)
        if self._decode.into and not places.into and name == self._decode.into:
            self._places = replace(places, into=tensor, asked_before_into=self._asked - 1)
        elif self._decode.node and name == self._decode.node:
            self._places = replace(places, node=tensor, asked_before_node=self._asked - 1)
        elif name in self._pauses:
            self._is_pausing = True
        else:
            return False
        self._asked, self._is_told = 0, True
        return True

    def _stop_for_a_moment(self) -> bool:
        """Call what a pause is for; False, which ends the decode, if that failed."""
        assert self._pause
        self._is_pausing = False
        try:
            self._pause()
        except Exception as error:  # noqa: BLE001 -- ``check`` raises it: C code would drop it
            self._failure = error
        return self._failure is None

    def _write(self, tensor: int) -> bool:
        """Write the rows; False, which ends the decode, if the node is not where it was."""
        if self._get_name(tensor) != self._decode.into:
            self._places = _Places()
            return False
        self._ggml.write(tensor, *self._source)
        return True

    def check(self) -> None:
        """Raise EngineError if the nodes of the decode that just ended were not in their places."""
        if self._failure:
            raise self._failure
        decode, places = self._decode, self._places
        is_written = not decode.into or places.into
        is_there = not decode.node or (places.node and self._get_name(places.node) == decode.node)
        if not (is_written and is_there):
            self._found.clear()
            wanted = (decode.node if is_written else decode.into).decode()
            raise EngineError(f"llama.cpp's graph has no {wanted} in its place")
        if not self._pause:  # else the nodes in between were counted otherwise
            self._found.setdefault(decode, places)

    def read(self, size: int) -> bytes:
        """Return what the wanted node holds after a decode; raises as ``check``."""
        self.check()
        return self._ggml.read(self._places.node, size)
