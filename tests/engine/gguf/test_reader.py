"""GGUF headers: read back byte for byte, and refused when they are not what they should be."""

import ctypes
import functools
import struct
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf as reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp._ggml import libggml_base_path

from p2pinfer.core.errors import BadModelFile, UserError
from p2pinfer.engine.gguf import reader
from p2pinfer.engine.gguf.ggml_types import F32, GGML_TYPES
from p2pinfer.engine.gguf.reader import GgufHeader, parse_header, read_header
from p2pinfer.engine.gguf.values import Array, Value, ValueType, encode_string
from p2pinfer.engine.gguf.writer import Extent, NewTensor, encode_header, write_gguf

VALUES: Mapping[str, Value | Array] = {
    "u8": Value.of(ValueType.UINT8, 255),
    "i8": Value.of(ValueType.INT8, -128),
    "u16": Value.of(ValueType.UINT16, 65535),
    "i16": Value.of(ValueType.INT16, -1),
    "u32": Value.of(ValueType.UINT32, 2**32 - 1),
    "i32": Value.of(ValueType.INT32, -(2**31)),
    "u64": Value.of(ValueType.UINT64, 2**64 - 1),
    "i64": Value.of(ValueType.INT64, -(2**63)),
    "f32": Value.of(ValueType.FLOAT32, 0.5),
    "f64": Value.of(ValueType.FLOAT64, 1e300),
    "yes": Value.of(ValueType.BOOL, True),
    "text": Value.of(ValueType.STRING, "grüß dich"),
    "words": Array.of(ValueType.STRING, ["", "a", "▁b"]),
    "numbers": Array.of(ValueType.INT32, [1, -2, 3]),
    "flags": Array.of(ValueType.BOOL, [True, False]),
    "nothing": Array.of(ValueType.FLOAT32, []),
}
Q4_K = GGML_TYPES[12]
TENSORS = (NewTensor("first", (3, 2), F32, None), NewTensor("second", (256, 2, 2), Q4_K, None))
GGML_TYPE_COUNT = 43  # ggml.h
DATA_BYTES = 32 + 576
"""24 bytes of F32, padded, and four blocks of Q4_K."""


def parse(data: bytes) -> GgufHeader:
    """Parse a whole file that is held in memory."""
    return parse_header(data, len(data), "m.gguf")


@functools.cache
def small_file() -> bytes:
    """Return a file with a value of every type and two tensors."""
    return encode_header(VALUES, TENSORS) + bytes(DATA_BYTES)


def file_with(
    pairs: bytes = b"", count: int = 1, tensors: bytes = b"", tensor_count: int = 0
) -> bytes:
    """Return a file with hand-made metadata or tensors, and some bytes after its header."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, tensor_count, count if pairs else 0)
    return head + pairs + tensors + bytes(4096)


def text(value: str) -> bytes:
    """Encode a string with its length in front."""
    return encode_string(value)


def tensor(name: str, *shape: int, kind: int = 0, offset: int = 0) -> bytes:
    """Encode one row of the tensor table."""
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


def test_every_value_type_reads_back() -> None:
    """What was encoded is what is decoded."""
    header = parse(small_file())
    assert header.metadata == VALUES
    decoded = [value.decode() for value in header.metadata.values()]
    whole = [255, -128, 65535, -1, 2**32 - 1, -(2**31), 2**64 - 1, -(2**63)]
    arrays = [["", "a", "▁b"], [1, -2, 3], [True, False], []]
    assert decoded == [*whole, 0.5, 1e300, True, "grüß dich", *arrays]
    places = [(t.name, t.shape, t.nbytes, t.offset) for t in header.tensors.values()]
    start = len(small_file()) - DATA_BYTES
    assert places == [("first", (3, 2), 24, start), ("second", (256, 2, 2), 576, start + 32)]


def test_numbers_that_python_cannot_hold_read_back() -> None:
    """A float's bytes survive, even those of a NaN with a payload."""
    odd = Value(ValueType.FLOAT32, b"\x01\x02\xa0\x7f")
    assert parse(encode_header({"odd": odd}, ())).metadata["odd"] == odd


def test_type_table_agrees_with_ggml() -> None:
    """The table holds every type of the installed ggml, with its own block sizes."""
    ggml = ctypes.CDLL(str(next(libggml_base_path.glob("*ggml-base.*"))))
    ggml.ggml_type_name.restype = ctypes.c_char_p
    ggml.ggml_blck_size.restype = ctypes.c_int64
    ggml.ggml_type_size.restype = ctypes.c_size_t
    theirs = {}
    for number in range(GGML_TYPE_COUNT):
        block = ggml.ggml_blck_size(number), ggml.ggml_type_size(number)
        if block != (0, 0):  # a type that was removed
            theirs[number] = (ggml.ggml_type_name(number).decode().upper(), *block)
    ours = {n: (t.name, t.block_elements, t.block_bytes) for n, t in GGML_TYPES.items()}
    assert ours == theirs


def test_default_model_reads_back(default_model: Path) -> None:
    """A real header, vocabulary and all, is encoded to the bytes that it was read from."""
    header = read_header(default_model)
    tensors = [NewTensor(t.name, t.shape, t.type, None) for t in header.tensors.values()]
    encoded = encode_header(header.metadata, tensors)
    with default_model.open("rb") as file:
        assert encoded == file.read(len(encoded))
    tokens = header.metadata["tokenizer.ggml.tokens"].decode()
    assert isinstance(tokens, list)
    assert tokens[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def test_a_header_longer_than_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header is read in as many steps as it takes."""
    path = tmp_path / "m.gguf"
    path.write_bytes(small_file())
    monkeypatch.setattr(reader, "_FIRST_READ_BYTES", 10)
    assert read_header(path).metadata == VALUES


def test_written_by_llama_cpps_own_package(tmp_path: Path) -> None:
    """A file of the reference writer is read, and written again as the same bytes."""
    writer = reference.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    writer.add_array("general.languages", ["en", "de"])
    writer.add_tensor("a", np.arange(10, dtype=np.float32))
    writer.add_tensor("b", np.arange(12, dtype=np.float16).reshape(3, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(tmp_path / "theirs.gguf")
    tensors = [
        NewTensor(t.name, t.shape, t.type, Extent(tmp_path / "theirs.gguf", t.offset, t.nbytes))
        for t in header.tensors.values()
    ]
    write_gguf(tmp_path / "ours.gguf", header.metadata, tensors)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


PAIR = text("k") + struct.pack("<I", ValueType.UINT8) + b"\7"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cut short"),
        (b"PK\3\4" + bytes(100), "is not a GGUF file"),
        (struct.pack("<4sI", b"GGUF", 1), "GGUF version 1"),
        (struct.pack(">4sI", b"GGUF", 3), "big-endian"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 2**63, 0), "claims 9,223,372,036,854,775,808 tensors"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**20), "claims 1,048,576 metadata keys"),
        (file_with(PAIR + PAIR, 2), "'k' appears twice"),
        (file_with(text("") + PAIR), "a metadata key is empty"),
        (file_with(struct.pack("<Q", 1) + b"\xff" + PAIR[9:]), "a metadata key is not UTF-8"),
        (file_with(struct.pack("<Q", 2**64 - 1)), "bytes in a metadata key"),
        (file_with(text("k") + struct.pack("<I", 13)), "unknown type 13"),
        (file_with(text("k") + struct.pack("<IB", 7, 2)), "neither 0 nor 1"),
        (file_with(text("k") + struct.pack("<IQ", 8, 2**40)), "bytes in 'k'"),
        (file_with(text("k") + struct.pack("<IQB", 8, 1, 255)), "'k' is not UTF-8"),
        (file_with(text("k") + struct.pack("<IIQ", 9, 9, 0)), "an array of arrays"),
        (file_with(text("k") + struct.pack("<IIQ", 9, 4, 2**62)), "items in 'k'"),
        (file_with(text("k") + struct.pack("<IIQ", 9, 8, 2**20)), "cut short"),
        (file_with(text("k") + struct.pack("<IIQQ", 9, 8, 2, 2**64 - 1)), "cut short"),
        (file_with(text("general.alignment") + struct.pack("<II", 4, 24)), "power of two"),
        (file_with(text("general.alignment") + struct.pack("<II", 4, 0)), "power of two"),
        (file_with(tensors=tensor("t"), tensor_count=1), "has 0 dimensions"),
        (file_with(tensors=tensor("t", 1, 1, 1, 1, 1), tensor_count=1), "has 5 dimensions"),
        (file_with(tensors=tensor("t", 4, 0), tensor_count=1), "'t' is empty"),
        (file_with(tensors=tensor("t", 4, kind=31), tensor_count=1), "unknown type 31"),
        (file_with(tensors=tensor("t", 48, kind=2), tensor_count=1), "number of Q4_0 blocks"),
        (file_with(tensors=tensor("t", 4, offset=32), tensor_count=1), "follow the one before"),
        (file_with(tensors=tensor("t", 2**40), tensor_count=1), "cut short"),
        (file_with(tensors=tensor("t", *[2**63] * 4), tensor_count=1), "cut short"),
        (file_with(tensors=tensor("t" * 64, 4), tensor_count=1), "bytes in a tensor's name"),
        (
            file_with(tensors=tensor("t", 4) + tensor("t", 4, offset=32), tensor_count=2),
            "tensor 't' appears twice",
        ),
        (
            file_with(tensors=tensor("t", 4) + tensor("u", 4, offset=0), tensor_count=2),
            "'u' does not follow the one before",
        ),
    ],
)
def test_refused_with_a_reason(data: bytes, reason: str) -> None:
    """Each way to be wrong has its own sentence, which names the file."""
    with pytest.raises(BadModelFile, match=reason) as caught:
        parse(data)
    assert str(caught.value).startswith("m.gguf ")


def test_every_truncation_is_noticed() -> None:
    """A file whose end is missing, even by one byte, is cut short."""
    for length in range(len(small_file())):
        with pytest.raises(BadModelFile, match="cut short"):
            parse(small_file()[:length])


def test_every_changed_byte_is_read_or_refused() -> None:
    """Whatever one byte of the header becomes, the result is a header or a typed refusal."""
    refused = 0
    for at in range(len(small_file()) - DATA_BYTES):
        for new in (0, 1, 0x1F, 0x7F, 0x80, 0xFF):
            changed = bytearray(small_file())
            changed[at] = new
            try:
                parse(bytes(changed))
            except BadModelFile:
                refused += 1
    assert refused > 1000


@settings(max_examples=1000, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 400), st.integers(0, 40))
def test_anything_is_read_or_refused(noise: bytes, at: int, cut: int) -> None:
    """Whatever bytes replace a stretch of a header, the result is a header or a typed refusal."""
    data = small_file()[:at] + noise + small_file()[at + cut :]
    try:
        header = parse(data)
    except BadModelFile:
        return
    assert all(t.offset + t.nbytes <= len(data) for t in header.tensors.values())


@settings(max_examples=100)
@given(st.randoms(use_true_random=False))
def test_damaged_headers_are_read_or_refused(random: Any) -> None:
    """A header with bytes changed, cut out or put in, is one or is refused: 10,000 cases."""
    for _ in range(100):
        data = bytearray(small_file())
        for _ in range(random.randint(1, 3)):
            at = random.randrange(len(data) + 1)
            data[at : at + random.randrange(9)] = random.randbytes(random.randrange(9))
        try:
            header = parse(bytes(data))
        except BadModelFile:
            continue
        assert all(t.offset + t.nbytes <= len(data) for t in header.tensors.values())


def test_a_lying_header_costs_no_memory() -> None:
    """Claims of millions of items are refused before anything is allocated for them."""
    lies = file_with(text("k") + struct.pack("<IIQ", 9, 8, reader.ARRAY_ITEMS_MAX))
    tracemalloc.start()
    with pytest.raises(BadModelFile):
        parse(lies)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_missing_file(tmp_path: Path) -> None:
    """A path that leads nowhere, or to a folder, is one clear sentence."""
    with pytest.raises(BadModelFile, match="No such file"):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(BadModelFile, match="Is a directory"):
        read_header(tmp_path)


def test_typed_access() -> None:
    """A key of another type than expected is refused, an absent one is None."""
    header = parse(small_file())
    assert (header.integer("u8"), header.number("f32"), header.string("text")) == (
        (255, 0.5, "grüß dich")
    )
    assert header.integer("absent") is None
    assert header.number("absent") is None
    assert header.string("absent") is None
    for read, key in (
        (header.integer, "yes"),
        (header.integer, "f32"),
        (header.number, "text"),
        (header.string, "u8"),
        (header.string, "words"),
    ):
        with pytest.raises(BadModelFile, match=key):
            read(key)


def test_write_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    """When a source ends too soon or is missing, neither the file nor a fragment of it remains."""
    source = tmp_path / "source"
    source.write_bytes(b"123")
    short = NewTensor("t", (2,), F32, Extent(source, 0, 8))
    with pytest.raises(BadModelFile, match="became shorter"):
        write_gguf(tmp_path / "m.gguf", {}, [short])
    missing = NewTensor("t", (2,), F32, Extent(tmp_path / "none", 0, 8))
    with pytest.raises(UserError, match="none: No such file"):
        write_gguf(tmp_path / "m.gguf", {}, [missing])
    assert list(tmp_path.iterdir()) == [source]


def test_write_holds_little_in_memory(tmp_path: Path) -> None:
    """Copying a tensor of 64 MiB takes a few blocks of memory."""
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(64 << 20)  # sparse
    big = NewTensor("t", (16 << 20,), F32, Extent(source, 0, 64 << 20))
    tracemalloc.start()
    write_gguf(tmp_path / "m.gguf", {}, [big])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    assert read_header(tmp_path / "m.gguf").tensors["t"].nbytes == 64 << 20
