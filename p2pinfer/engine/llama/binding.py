"""The one module that speaks to llama.cpp: a GGUF slice, its KV cache, its vocabulary, samplers.

A slice takes tokens or rows of the residual stream in, and gives rows or logits out. Rows leave
through llama.cpp's public evaluation callback: it is asked about every node of the graph, answers
yes to the last wanted layer's ``l_out`` and then says stop, which also skips the norm and the head
that a slice does not have. The rows are read where that node left them. They enter as embeddings;
where llama.cpp would scale those, or does not take them, it is given tokens instead, and the rows
are written over what it looked up for them.

Every session has a KV stream of its own (``kv_unified=False``): its cells lie in the order of its
positions whatever other sessions do, so the floating-point sums of attention never depend on them.
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pinfer.core.errors import BadModelFile, EngineError, UnsupportedModel
from p2pinfer.core.exits import NEEDS_LESS, lacked_memory
from p2pinfer.core.limits import ROWS_PER_DECODE_MAX
from p2pinfer.core.sampling import Sampling
from p2pinfer.engine.base import CannotCopy
from p2pinfer.engine.gguf.adapters import adapter_path
from p2pinfer.engine.gguf.architectures import RULES
from p2pinfer.engine.gguf.bare_ends import LAYERS_BEFORE_KEY, LAYERS_KEY
from p2pinfer.engine.llama import libraries
from p2pinfer.engine.llama.ggml import Ggml
from p2pinfer.engine.llama.kv_state import HEAD_WORDS, KvState, Words
from p2pinfer.engine.llama.logprobs import log_probabilities
from p2pinfer.engine.llama.tap import Decode, Tap
from p2pinfer.engine.llama.token_filter import TokenFilter
from p2pinfer.engine.llama.tracing import Trace, Tracer, check_traced
from p2pinfer.engine.special_tokens import CALL_MARKS, ControlToken

# How often a thread checks whether the others have finished before it sleeps until they have; there
# are about 20 such barriers per layer. GCC's default of 300,000 checks takes longer than a time
# slice, so on a busy machine the waiting thread keeps the processor from the one it waits for, and
# a token takes a hundred times as long. With 300, a token takes no longer there than if threads
# slept at once, and 5 % longer than by checking only on an idle machine; a prompt takes no longer.
# Read when llama.cpp is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "300")


def _bindings() -> Any:
    """Import llama.cpp's Python bindings, for the libraries that a person names, if any."""
    libraries.use_named_folder()
    import llama_cpp

    return llama_cpp


_llama_cpp = _bindings()
api = _llama_cpp.llama_cpp

CELLS_GRAIN = 256
"""llama.cpp rounds each session's KV cells up to a multiple of this."""

_LLAMA_LOAD_MODE_NONE = 0
"""llama.h: weights in memory of their own, not mapped from the file: that may be huge pages."""

_ALL_LAYERS = -1
"""llama.h: of ``n_gpu_layers``; the head counts as one, the embedding stays with the CPU."""

_GGML_TYPE_BF16 = 30
"""ggml.h; the Python bindings name only older types."""

Rows = NDArray[np.float32]
Tokens = NDArray[np.int32]

_log_lines: list[str] = []
_LOG_LINES_MAX = 20


@api.llama_log_callback  # type: ignore[untyped-decorator] # ctypes' own
def _keep_errors(level: int, text: bytes, _: Any) -> None:
    """Keep llama.cpp's last error lines for our own messages instead of printing them."""
    if level >= 4:  # GGML_LOG_LEVEL_ERROR
        _log_lines.append(text.decode(errors="replace").strip())
        del _log_lines[:-_LOG_LINES_MAX]


api.llama_log_set(_keep_errors, ctypes.c_void_p(0))

_ggml = Ggml(libraries.folder())


@dataclass(frozen=True)
class Settings:
    """What the arithmetic of a slice depends on besides its weights."""

    threads: int = 1
    repack: bool = True
    """Let ggml rearrange weights for the CPU: exact and fast for Q4_0, neither for K-quants."""
    values_bf16: bool = False
    """Keep V in bfloat16: slower, but the same bits for any number of threads past 512 cells."""
    flash_attention: bool = True
    """llama.cpp's default; without it, far positions take less time on some CPUs."""
    device: str = ""
    """The GPU that holds the layers and their cells, as ggml names it; empty: the CPU. Several,
    with commas between them, share the layers, which measurements compare with."""
    fixed: bool = False
    """Decode only one row, or one fixed number of them: what is narrow goes row by row."""


@dataclass(slots=True)  # frozen ones take five times as long to make, once per token
class Span:
    """Consecutive positions of one session that are decoded together."""

    slot: int
    position: int
    inputs: Tokens | Rows
    outputs: bool = True
    """False: only fill the KV cache (saves the head's work while a prompt is read)."""
    layers: int | None = None
    """Run only this many of the slice's layers, the same for all rows of a session; None: all."""
    every: bool = False
    """Give logits of each row, and not of the last alone."""

    def __len__(self) -> int:
        """How many rows the span holds."""
        return len(self.inputs)


class Slice:
    """A loaded GGUF with KV cells for ``sessions`` sessions of ``context`` positions each.

    Args:
        path: a GGUF written by ``p2pinfer.engine.gguf.slicing``, or a whole model; an adapter that
            lies beside it is used (``gguf.adapters``).
        logits: give logits (float32, one row of the vocabulary's size per output) instead of the
            residual stream behind the last layer (float32, width).
        settings: threads and kernels.
        sessions: KV streams, numbered from 0.
        context: positions per session; rounded up to a multiple of ``CELLS_GRAIN``.
        rows_max: rows per decode, padding included.
        like: share the weights of this one, which is of the same file and must outlive it.

    Raises:
        BadModelFile: llama.cpp does not load the file.
        EngineError: memory ran out.
    """

    def __init__(
        self,
        path: Path,
        *,
        logits: bool,
        settings: Settings,
        sessions: int,
        context: int,
        rows_max: int = ROWS_PER_DECODE_MAX,
        like: "Slice | None" = None,
    ) -> None:
        self.settings, self.sessions, self._logits = settings, sessions, logits
        self._threads = settings.threads
        # A padded decode may run so far past the last position that a session may hold.
        cells = -(-(context + rows_max - 1) // CELLS_GRAIN) * CELLS_GRAIN
        self.context = context
        self._owns_model = like is None
        self._model: Any = like._model if like else _load_model(path, settings)
        # Before any context: one made earlier has no room for an adapter's nodes in its graph.
        self._adapter: Any = like._adapter if like else _load_adapter(self._model, path)
        self.width: int = api.llama_model_n_embd(self._model)
        self.layers: int = api.llama_model_n_layer(self._model)
        told = _said(self._model, LAYERS_KEY)
        self.kept_layers = int(told) if told else self.layers
        """Of the model: none in an end that is its embedding or its head alone."""
        self._usual_layers = self.kept_layers or self.layers  # what is behind them adds nothing
        self.keeps_state = bool(
            api.llama_model_is_recurrent(self._model) or api.llama_model_is_hybrid(self._model)
        )
        """Positions cannot be dropped but all at once."""
        self.vocab = api.llama_model_get_vocab(self._model)
        self.vocabulary: int = api.llama_vocab_n_tokens(self.vocab)
        self._tap = Tap(_ggml)
        self._rows_into = _rows_into(self._model)
        self._nodes = _outs_of_layers(self._model, self.layers)
        self.ctx = api.llama_init_from_model(self._model, self._context_params(cells, rows_max))
        if not self.ctx:
            if self._owns_model:
                api.llama_model_free(self._model)
            raise _refusal("run", path)
        self._use_adapter(path)
        self._memory = api.llama_get_memory(self.ctx)
        self._lengths = [0] * sessions
        self._batch = _Batch(rows_max, self.width, writes_rows=bool(self._rows_into))
        self.can_move = self._can_move()
        """Whether sessions can be moved: llama.cpp leaves out cells behind a layer's window."""

    def _use_adapter(self, path: Path) -> None:
        """Have this context compute with the adapter, which is freed with the model."""
        if self._adapter is None:
            return
        # Once and for good: the tap counts the nodes of a graph only once.
        adapters = (api.llama_adapter_lora_p_ctypes * 1)(self._adapter)
        scales = (ctypes.c_float * 1)(1.0)  # the file's own scale is all there is
        if api.llama_set_adapters_lora(self.ctx, adapters, 1, scales):
            raise _refusal("use the adapter beside", path)

    def _context_params(self, cells: int, rows_max: int) -> Any:
        params = api.llama_context_default_params()
        params.n_ctx = cells * self.sessions
        params.n_seq_max = self.sessions
        params.n_batch = params.n_ubatch = rows_max
        params.n_threads = params.n_threads_batch = self.settings.threads
        params.flash_attn_type = (
            _llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
            if self.settings.flash_attention
            else _llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        params.kv_unified = False
        # A windowed layer must keep every cell, or dropping positions would not bring them back.
        params.swa_full = True
        params.no_perf = True
        if self.settings.values_bf16:
            params.type_v = _GGML_TYPE_BF16
        if self._rows_into or not self._logits:
            params.cb_eval = ctypes.cast(self._tap.callback, type(params.cb_eval))
        return params

    def close(self) -> None:
        """Free the KV cache, and the model unless it is another slice's."""
        api.llama_free(self.ctx)
        if self._owns_model:
            api.llama_model_free(self._model)

    def use_threads(self, threads: int) -> None:
        """Compute with another number of threads from now on."""
        if threads != self._threads:
            self._threads = threads
            api.llama_set_n_threads(self.ctx, threads, threads)

    def use_fixed_rows(self) -> None:
        """Decode only one row, or one fixed number of them, from now on."""
        self.settings = replace(self.settings, fixed=True)

    def truncate(self, slot: int, length: int) -> None:
        """Drop a session's positions from ``length`` on; 0 frees all its cells.

        Raises:
            EngineError: a layer keeps a state that cannot be taken back.
        """
        if self._lengths[slot] > length:
            if not api.llama_memory_seq_rm(self._memory, slot, length, -1):
                raise EngineError(
                    f"{self._lengths[slot] - length} positions cannot be dropped: some of this"
                    " model's layers keep a state that only begins again"
                )
            self._lengths[slot] = length

    def _can_move(self) -> bool:
        empty = self._state(0)
        return (
            not self.keeps_state
            and not api.llama_model_n_swa(self._model)
            and len(empty) == HEAD_WORDS + self.sessions
            and empty[HEAD_WORDS - 1 :].tolist() == [self.sessions, *[0] * self.sessions]
        )

    def move(self, slot: int, to: "Slice", to_slot: int) -> None:
        """Move a session's positions to a free slot of a slice that shares the weights.

        Raises:
            EngineError: llama.cpp failed, or memory ran out; the session stays where it is.
        """
        self.copy(slot, to, to_slot)
        self.truncate(slot, 0)

    def inherit(self, slot: int, source: "Slice", source_slot: int, length: int) -> None:
        """Begin a session with a copy of another one's first positions.

        ``source`` is this slice or one that shares the weights.

        Raises:
            EngineError: that session holds fewer, its layers keep a state, its sessions cannot be
                moved between slices, llama.cpp failed, or memory ran out.
        """
        if self.keeps_state or not (source is self or self.can_move):
            raise EngineError("what the other session holds cannot be copied")
        if source._lengths[source_slot] < length:
            raise EngineError(f"the other session does not hold {length} positions")
        if source is self and not self.can_move:
            self.truncate(slot, 0)
            # Between streams llama.cpp copies whole ones, windows and all, before it next decodes.
            api.llama_memory_seq_cp(self._memory, source_slot, slot, -1, -1)
            self._lengths[slot] = self._lengths[source_slot]
        else:
            source.copy(source_slot, self, slot)
        self.truncate(slot, length)

    def copy(self, slot: int, to: "Slice", to_slot: int) -> None:
        """Copy a session's positions to a free slot, as ``move`` does; raises as it does."""
        to.truncate(to_slot, 0)
        if not self._lengths[slot]:
            return
        to._put(to_slot, self._state(slot, more=to.sessions)[slot:], self._lengths[slot])

    def size(self, slot: int, bytes_max: int) -> tuple[int, int]:
        """Return how many positions a session has, and the bytes of ``cells``; raises like it."""
        if not self._lengths[slot]:
            raise EngineError("the session holds no positions")
        size = api.llama_state_seq_get_size(self.ctx, slot)
        if size > bytes_max:
            raise CannotCopy(f"the session's cells are more than {bytes_max >> 20} MiB")
        return self._lengths[slot], size

    def cells(
        self, slot: int, bytes_max: int, streams: int = 0, room: Words | None = None
    ) -> KvState:
        """Return a copy of a session's K and V rows, for slices of up to ``streams`` sessions.

        Args:
            slot: the session.
            bytes_max: refuse if they are longer.
            streams: of the slices that they may be given to.
            room: zeros to keep them in, if they are enough.

        Raises:
            CannotCopy: they are more than ``bytes_max``.
            EngineError: it holds no positions, llama.cpp keeps them in another way, or memory ran
                out.
        """
        self.size(slot, bytes_max)
        return KvState(self._state(slot, more=streams, room=room)[slot:])

    def restore(self, slot: int, cells: KvState, positions: int) -> None:
        """Give a slot the first positions of what ``cells`` returned; raises EngineError."""
        self.truncate(slot, 0)
        self._put(slot, cells.words, cells.positions)
        self.truncate(slot, positions)

    def _put(self, slot: int, state: Words, positions: int) -> None:
        """Fill a free slot with a state in which the first stream holds the session."""
        # The number of streams, then each one's cells: zero but for one's, wherever it is read to.
        state[HEAD_WORDS - 1] = self.sessions
        if not api.llama_state_seq_set_data(self.ctx, _bytes_of(state), state.nbytes, slot):
            raise EngineError(f"llama.cpp could not move a session: {_last_error()}")
        self._lengths[slot] = positions

    def _state(self, slot: int, more: int = 0, room: Words | None = None) -> Words:
        """Return what llama.cpp knows of a session, and zeros behind it, as 32-bit words.

        The head is repeated before the session's own stream, so that it may be the first one.
        """
        size = api.llama_state_seq_get_size(self.ctx, slot)
        words = size // 4 + more
        try:
            has_room = room is not None and len(room) >= words
            found = room[:words] if room is not None and has_room else np.zeros(words, np.uint32)
        except MemoryError as error:
            raise EngineError(f"memory ran out for a session's move: {NEEDS_LESS}") from error
        api.llama_state_seq_get_data(self.ctx, _bytes_of(found), size, slot)
        found[slot : slot + HEAD_WORDS] = found[:HEAD_WORDS]
        return found

    def check(self, span: Span) -> None:
        """Raise EngineError where the span leaves a gap in its session, or does not fit into it."""
        if span.position > self._lengths[span.slot]:
            raise EngineError(f"position {span.position} leaves a gap in the session")
        if span.position + len(span) > self.context:
            raise EngineError(f"the context of {self.context} positions is full")

    def decode(
        self,
        spans: Sequence[Span],
        *,
        pad_to: int = 0,
        pause: Callable[[], None] | None = None,
    ) -> list[NDArray[np.float32]]:
        """Run spans in one decode and return each one's outputs, in order.

        Several spans must run as many layers, and have one row each and adjoining slots in
        ascending order: then llama.cpp computes them as one batch. A position before a session's
        end drops what lies beyond.

        Args:
            spans: at most ``rows_max`` rows in all.
            pad_to: run at least that many rows (of a single span), so that other kernels do it.
            pause: called between any two layers; it may decode in another slice, but not in this
                one. What it raises ends the decode, and is raised again. Where logits come out,
                there are no pauses.

        Raises:
            EngineError: a position leaves a gap or lies past the context, or llama.cpp failed.
        """
        assert spans
        assert len(spans) == 1 or all(
            len(b) == 1 and b.slot == a.slot + 1 and b.layers == a.layers
            for a, b in pairwise(spans)
        )
        if self.keeps_state and pad_to > len(spans[0]):
            raise EngineError(
                "rows of padding would go into the state that this model's layers keep"
            )
        for span in spans:
            self.check(span)
            self.truncate(span.slot, span.position)
        if self.settings.fixed and not pad_to and sum(map(len, spans)) > 1:
            return [self._row_by_row(span) for span in spans]
        rows = self._batch.fill(spans, pad_to, only_last=self._logits)
        outputs = self._run(rows, len(spans), spans[0].layers or self._usual_layers, pause)
        for span in spans:
            self._lengths[span.slot] = span.position + max(len(span), pad_to)
            self.truncate(span.slot, span.position + len(span))
        if self._logits:
            return self._logits_of(spans)
        if len(spans) > 1:  # of one row each
            return list(outputs.reshape(len(spans), 1, self.width))
        return [outputs[: len(spans[0])]]

    def occupy(self, span: Span) -> None:
        """Take up a span's positions without computing them: their cells hold what they held.

        For measurements, which depend on how many cells there are and not on what is in them.

        Raises:
            EngineError: as ``decode``.
        """
        self.check(span)
        self.truncate(span.slot, span.position)
        rows = self._batch.fill([span], 0, only_last=self._logits)
        answers = iter((True, False))  # the first node, and no further
        self._tap.lend(lambda _: next(answers))
        if api.llama_decode(self.ctx, self._batch.struct) != 0:
            raise EngineError(f"llama.cpp could not take up {rows} positions: {_last_error()}")
        self._lengths[span.slot] = span.position + rows

    def _row_by_row(self, span: Span) -> NDArray[np.float32]:
        """Run each row of a span by itself; return the last one's logits, or all if wanted."""
        found = []
        for i in range(len(span)):
            is_told = span.every or i + 1 == len(span) or not self._logits
            outputs = span.outputs and is_told
            at, row = span.position + i, span.inputs[i : i + 1]
            found.append(self.decode([Span(span.slot, at, row, outputs, span.layers)])[0].copy())
        return found[-1] if self._logits and not span.every else np.concatenate(found)

    def trace(
        self, span: Span, *, pad_to: int = 0, pause: Callable[[], None] | None = None
    ) -> Trace:
        """Run one row, and return what each of its layers computed, step by step.

        The row has the bits that ``decode`` would give it, and takes its place in the session.

        Args:
            span: one row.
            pad_to: as for ``decode``.
            pause: called between any two steps; otherwise as for ``decode``.

        Raises:
            UnsupportedModel: layers of this architecture cannot be traced.
            EngineError: as ``decode``, or the graph lacks a step.
        """
        assert len(span) == 1
        architecture = self.check_traced()
        self.check(span)
        self.truncate(span.slot, span.position)
        rows = self._batch.fill([span], pad_to, only_last=self._logits)
        tracer = Tracer(_ggml, architecture, span.layers or self._usual_layers, rows, pause)
        self._tap.lend(tracer.answer)
        status = api.llama_decode(self.ctx, self._batch.struct)
        if status != 0:
            raise EngineError(f"llama.cpp could not decode {rows} rows: {_last_error()}")
        self._lengths[span.slot] = span.position + rows
        self.truncate(span.slot, span.position + 1)
        if tracer.failure:
            raise tracer.failure
        if not tracer.is_whole():
            raise EngineError(f"llama.cpp's graph of {architecture} lacks a step of its layers")
        return tracer.trace

    def check_traced(self) -> str:
        """Return the architecture; raise UnsupportedModel where ``trace`` does not know it."""
        architecture = _said(self._model, "general.architecture")
        check_traced(architecture, int(_said(self._model, f"{architecture}.expert_count") or 0))
        if self._adapter is not None:
            raise UnsupportedModel("layers that an adapter changes cannot be proven")
        return architecture

    def _run(self, rows: int, sessions: int, layers: int, pause: Callable[[], None] | None) -> Rows:
        """Decode the filled batch; returns the residual stream (empty when logits are wanted)."""
        node = b"" if self._logits else self._nodes[layers - 1]
        into = self._rows_into if self._batch.has_rows else b""
        source = self._batch.rows_at(rows) if into else (0, 0)
        decode = Decode(node, rows, sessions, into)
        if pause:
            self._tap.arm(decode, source, pause, frozenset(self._nodes[: layers - 1]))
        else:
            self._tap.arm(decode, source)
        status = api.llama_decode(self.ctx, self._batch.struct)
        if status != 0:
            raise EngineError(f"llama.cpp could not decode {rows} rows: {_last_error()}")
        if into:
            self._tap.check()
        data = b"" if self._logits else self._tap.read(4 * rows * self.width)
        return np.frombuffer(data, np.float32).reshape(-1, self.width)

    def _logits_of(self, spans: Sequence[Span]) -> list[NDArray[np.float32]]:
        """The last row's logits per span that asked for outputs, or all of its rows'."""
        found, row = [], -1
        for span in spans:
            row += len(span)
            if not span.outputs:
                found.append(np.empty((0, self.vocabulary), np.float32))
                continue
            rows = len(span) if span.every else 1  # one behind the other, in their order
            data = api.llama_get_logits_ith(self.ctx, row - rows + 1)
            found.append(np.ctypeslib.as_array(data, (rows, self.vocabulary)))
        return found


def _bytes_of(words: Words) -> Any:
    return words.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


class _Batch:
    """A ``llama_batch`` over arrays that are allocated once.

    ``writes_rows``: rows are kept here, and llama.cpp is told of as many tokens instead.
    """

    def __init__(self, rows: int, width: int, *, writes_rows: bool) -> None:
        self._writes_rows = writes_rows
        self.has_rows = False
        self._tokens = (ctypes.c_int32 * rows)()
        self._embd = np.zeros((rows, width), np.float32)
        self._positions = (ctypes.c_int32 * rows)()
        self._slots = (ctypes.c_int32 * rows)()
        self._wanted = (ctypes.c_int8 * rows)()
        slot = ctypes.POINTER(ctypes.c_int32)
        size = ctypes.sizeof(ctypes.c_int32)
        at = ctypes.addressof(self._slots)
        self.struct = api.llama_batch(
            pos=self._positions,
            n_seq_id=(ctypes.c_int32 * rows)(*[1] * rows),
            seq_id=(slot * rows)(*(ctypes.cast(at + size * i, slot) for i in range(rows))),
            logits=self._wanted,
        )
        self._embd_pointer = self._embd.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        self._embd_at, self._row_bytes = self._embd.ctypes.data, width * self._embd.itemsize

    def fill(self, spans: Sequence[Span], pad_to: int, *, only_last: bool) -> int:
        """Lay the spans out and return the number of rows, padding included.

        Padding is zeros at the positions behind the span: causal attention hides them from the
        rows that count, and they are dropped afterwards.
        """
        row = 0
        is_tokens = spans[0].inputs.dtype == np.int32
        self.has_rows = not is_tokens
        if self.has_rows and self._writes_rows:
            ctypes.memset(self._tokens, 0, ctypes.sizeof(self._tokens))
        for span in spans:
            first = row
            if is_tokens:
                self._tokens[row : row + len(span)] = span.inputs.tolist()
            else:
                self._embd[row : row + len(span)] = span.inputs
            while row < first + len(span):
                wanted = span.every or not only_last
                self._place(row, span.slot, span.position + row - first, wanted=wanted)
                row += 1
            self._wanted[row - 1] = span.outputs or not only_last
        while row < pad_to:
            assert len(spans) == 1
            self._tokens[row] = 0
            self._embd[row] = 0
            self._place(row, spans[0].slot, spans[0].position + row, wanted=not only_last)
            row += 1
        self.struct.n_tokens = row
        tells_tokens = is_tokens or self._writes_rows
        self.struct.token = self._tokens if tells_tokens else None
        self.struct.embd = None if tells_tokens else self._embd_pointer
        return row

    def rows_at(self, rows: int) -> tuple[int, int]:
        """Return where the rows are, and how many bytes they have."""
        return self._embd_at, rows * self._row_bytes

    def _place(self, row: int, slot: int, position: int, *, wanted: bool) -> None:
        self._slots[row], self._positions[row], self._wanted[row] = slot, position, wanted


_SHOWN = {"<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>"}
"""Control tokens of gpt-oss, which llama.cpp declares to be text, so that answers show them."""


class Vocabulary:
    """The tokenizer of a loaded slice that kept its own.

    Args:
        vocab: llama.cpp's, of a ``Slice``.
    """

    def __init__(self, vocab: Any) -> None:
        self._vocab = vocab

    @classmethod
    def of_file(cls, path: Path) -> "Vocabulary":
        """Load a vocabulary without the weights, until the process ends; raises BadModelFile."""
        params = api.llama_model_default_params()
        params.vocab_only = True
        no_devices = _ggml.device_list("")
        params.devices = ctypes.cast(no_devices, ctypes.c_void_p)
        model = api.llama_model_load_from_file(str(path).encode(), params)
        if not model:
            raise BadModelFile(f"llama.cpp cannot load {path}: {_last_error()}")
        return cls(api.llama_model_get_vocab(model))

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Return the tokens of a text; with ``special``, control tokens in it count as such."""
        raw = text.encode()
        # A token for each byte; some vocabularies write a space in three, or add a prefix.
        room = 3 * len(raw) + 8
        found = (ctypes.c_int32 * room)()
        count = api.llama_tokenize(self._vocab, raw, len(raw), found, room, False, special)
        if count < 0:
            raise EngineError("llama.cpp cannot tokenize this text")
        return list(found[:count])

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the bytes that a token stands for; of control tokens only with ``special``."""
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = api.llama_token_to_piece(self._vocab, token, buffer, room, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def shown(self, token: int) -> bytes:
        """Return the bytes that an answer shows of a token: text, and what a call begins with."""
        return self._marks.get(token) or self.piece(token)

    @cached_property
    def _marks(self) -> dict[int, bytes]:
        control = self.control_tokens()
        return {each.token: each.text.encode() for each in control if each.text in CALL_MARKS}

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return int(api.llama_vocab_n_tokens(self._vocab))

    def is_end(self, token: int) -> bool:
        """Whether the token ends what a model says."""
        return bool(api.llama_vocab_is_eog(self._vocab, token))

    @property
    def bos(self) -> str:
        """The text of the token that begins a text; empty where there is none."""
        return self._text(api.llama_vocab_bos(self._vocab))

    @property
    def eos(self) -> str:
        """The text of the token that ends a text; empty if there is none."""
        return self._text(api.llama_vocab_eos(self._vocab))

    def _text(self, token: int) -> str:
        return "" if token < 0 else self.piece(token, special=True).decode(errors="replace")

    def control_tokens(self) -> list[ControlToken]:
        """Return those that ``tokenize`` takes for text unless told otherwise."""
        found = []
        for token in range(self.size):
            kind = api.llama_vocab_get_attr(self._vocab, token)
            is_control = kind & (api.LLAMA_TOKEN_ATTR_CONTROL | api.LLAMA_TOKEN_ATTR_UNKNOWN)
            is_shown = kind & api.LLAMA_TOKEN_ATTR_USER_DEFINED and self._text(token) in _SHOWN
            if is_control or is_shown:
                strips_left = bool(kind & api.LLAMA_TOKEN_ATTR_LSTRIP)
                strips_right = bool(kind & api.LLAMA_TOKEN_ATTR_RSTRIP)
                strips = strips_left, strips_right
                found.append(ControlToken(token, self._text(token), *strips, bool(is_shown)))
        return found

    @property
    def begins_with(self) -> list[int]:
        """The tokens that every text starts with: the beginning-of-sequence token, or none."""
        if not api.llama_vocab_get_add_bos(self._vocab):
            return []
        return [api.llama_vocab_bos(self._vocab)]


class Sampler:
    """Draws one session's tokens with llama.cpp's own samplers, of those that a filter allows."""

    def __init__(
        self,
        part: Slice,
        sampling: Sampling,
        recent: Sequence[int],
        allowed: TokenFilter | None = None,
    ) -> None:
        self._part, self._chain, self._told = part, None, sampling.top_logprobs
        self.prompt_told = sampling.prompt_logprobs or 0
        """How many of the likeliest tokens to tell beside each of a prompt's."""
        self._filter = allowed
        self._is_greedy = not (sampling.temperature or sampling.is_penalised or sampling.logit_bias)
        if self._is_greedy:
            return
        self._chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        for each in _samplers(sampling, part.vocabulary):
            api.llama_sampler_chain_add(self._chain, each)
        for token in recent[-sampling.repeat_last_n :] if sampling.is_penalised else ():
            api.llama_sampler_accept(self._chain, token)

    def sample(self, row: int, logits: Rows) -> tuple[int, list[tuple[int, float]]]:
        """Return the next token after the given row of the last decode.

        Also the log-probability of that token, and then those of the likeliest, if wanted: as the
        model has them, whatever is allowed.

        Raises:
            EngineError: what the answer keeps to takes too much work, or leads nowhere.
        """
        told = self._told
        if self._filter is None:
            token = self._draw(row, logits)
            return token, [] if told is None else log_probabilities(logits, token, told)
        as_found = None if told is None else logits.copy()
        # Where llama.cpp reads them too.
        np.copyto(logits, np.float32(-np.inf), where=~self._filter.allowed())
        token = self._draw(row, logits)
        self._filter.accept(token)
        if told is None or as_found is None:
            return token, []
        return token, log_probabilities(as_found, token, told)

    def _draw(self, row: int, logits: Rows) -> int:
        if self._is_greedy:
            return int(logits.argmax())
        return int(api.llama_sampler_sample(self._chain, self._part.ctx, row))

    def close(self) -> None:
        """Free the chain."""
        if self._chain:
            api.llama_sampler_free(self._chain)
            self._chain = None


def _samplers(sampling: Sampling, vocabulary: int) -> list[Any]:
    """The chain: biases, then in the order of the fields of ``Sampling``."""
    chain = []
    if biases := sampling.logit_bias:
        listed = (api.llama_logit_bias * len(biases))(*biases)
        chain.append(api.llama_sampler_init_logit_bias(vocabulary, len(biases), listed))
    if sampling.is_penalised:
        chain.append(
            api.llama_sampler_init_penalties(
                vocabulary,
                sampling.repeat_last_n,
                sampling.repeat_penalty,
                sampling.frequency_penalty,
                sampling.presence_penalty,
            )
        )
    if sampling.temperature == 0:
        return [*chain, api.llama_sampler_init_greedy()]
    return [
        *chain,
        api.llama_sampler_init_top_k(sampling.top_k),
        api.llama_sampler_init_top_p(sampling.top_p, 1),
        api.llama_sampler_init_min_p(sampling.min_p, 1),
        api.llama_sampler_init_temp(sampling.temperature),
        api.llama_sampler_init_dist(sampling.seed),
    ]


def _load_model(path: Path, settings: Settings) -> Any:
    params = api.llama_model_default_params()
    devices = _ggml.device_list(settings.device)
    # Always told, or prompts are multiplied on a GPU although the layers are not there.
    params.devices = ctypes.cast(devices, ctypes.c_void_p)
    is_split = "," in settings.device
    modes = _llama_cpp.LLAMA_SPLIT_MODE_NONE, _llama_cpp.LLAMA_SPLIT_MODE_LAYER
    params.split_mode, params.main_gpu = modes[is_split], 0
    params.n_gpu_layers = _ALL_LAYERS if settings.device else 0
    params.use_extra_bufts = settings.repack
    params.load_mode = _LLAMA_LOAD_MODE_NONE
    model = api.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise _refusal("load", path)
    return model


def _load_adapter(model: Any, path: Path) -> Any:
    """Load the adapter beside a slice, for the model of that slice; None if there is none.

    Raises:
        BadModelFile: llama.cpp does not load it.
        EngineError: memory ran out.
    """
    beside = adapter_path(path)
    if not beside.exists():
        return None
    adapter = api.llama_adapter_lora_init(model, str(beside).encode())
    if not adapter:
        api.llama_model_free(model)
        raise _refusal("load", beside)
    return adapter


def _rows_into(model: Any) -> bytes:
    """Name the node that rows are written into; empty if they are given as embeddings."""
    rules = RULES.get(_said(model, "general.architecture"))
    return rules.rows_into.encode() if rules and rules.rows_into else b""


def _outs_of_layers(model: Any, layers: int) -> list[bytes]:
    """Name the nodes behind layers, from a slice's own first on."""
    rules = RULES.get(_said(model, "general.architecture"))
    node = rules.out_of_layer if rules else "l_out"
    if rules and rules.out_of_last:
        names = [*(f"{node}-{layer}" for layer in range(1, layers)), rules.out_of_last]
    else:
        names = [f"{node}-{layer}" for layer in range(layers)]
    return [name.encode() for name in names[int(_said(model, LAYERS_BEFORE_KEY) or 0) :]]


def _said(model: Any, key: str) -> str:
    """Return a value of the metadata as text; empty if it is absent."""
    value = ctypes.create_string_buffer(64)  # longer ones are of no architecture that is cut
    api.llama_model_meta_val_str(model, key.encode(), value, len(value))
    return value.value.decode(errors="replace")


def _refusal(what: str, path: Path) -> EngineError | BadModelFile:
    if lacked_memory(0, _last_error()):
        return EngineError(f"memory ran out for {path.name}: {NEEDS_LESS}")
    return BadModelFile(f"llama.cpp cannot {what} {path}: {_last_error()}")


def _last_error() -> str:
    return _log_lines[-1] if _log_lines else "no reason given"


def add_servers(endpoints: Sequence[str]) -> str:
    """Return, for ``Settings.device``, all devices of llama.cpp's own servers; raises UserError."""
    return ",".join(_ggml.add_servers(endpoints))


def build_fingerprint() -> str:
    """Say which llama.cpp this is and what it uses of this CPU; equal for equal arithmetic."""
    features = api.llama_print_system_info().decode()
    return f"{_llama_cpp.__version__} {libraries.digest(_ggml.cpu)} {features}"


def requantise(source: Path, target: Path, file_type: int) -> None:
    """Write a model again in another quantisation, as a cheat might serve it to save work.

    Raises:
        EngineError: llama.cpp cannot.
    """
    params = api.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = file_type, True, 1
    if api.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        raise EngineError(f"llama.cpp cannot quantise {source} again: {_last_error()}")
