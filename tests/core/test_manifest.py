"""Manifests: canonical bytes, an id that is their hash, and every limit checked."""

from typing import Any

import msgpack
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pinfer.core import manifest as manifests
from p2pinfer.core.ids import ModelId
from p2pinfer.core.manifest import (
    CHILD_FORMAT,
    CHUNK_BYTES,
    FORMAT,
    LONG_FORMAT,
    MANIFEST_BYTES_MAX,
    BadManifest,
    Manifest,
    Part,
    TensorRow,
    WrongList,
    WrongManifest,
    child_of,
    parse_manifest,
    part_names,
)

LAYERS = 3


def part(name: str, size: int) -> Part:
    """Make up a part whose chunk hashes derive from its name."""
    chunks = tuple(blake3(f"{name}{i}".encode()).digest() for i in range(-(-size // CHUNK_BYTES)))
    return Part(name, size, chunks)


def manifest(**changes: Any) -> Manifest:
    """Make up a manifest of three layers."""
    values: dict[str, Any] = {
        "name": "Toy",
        "license": "apache-2.0",
        "architecture": "llama",
        "layers": LAYERS,
        "width": 64,
        "vocabulary": 40,
        "context": 128,
        "tensors": (TensorRow("token_embd.weight", 0, (64, 40)), TensorRow("x", 8, (64,))),
        "parts": tuple(part(name, 2 * CHUNK_BYTES + 5) for name in part_names(LAYERS)),
    }
    return Manifest(**{**values, **changes})


def values() -> list[Any]:
    """Return what the toy manifest's array holds."""
    held: list[Any] = msgpack.unpackb(manifest().encode())
    return held


def test_reads_back() -> None:
    """What was encoded is what is parsed, and the id is the hash of the bytes."""
    made = manifest()
    data = made.encode()
    assert made.id == blake3(data).hexdigest()
    parsed = parse_manifest(data, made.id)
    assert parsed == made
    assert (parsed.id, parsed.encode()) == (made.id, data)
    assert parse_manifest(manifest(license=None).encode()).license is None


def test_the_bytes_do_not_change() -> None:
    """Ids of models in use depend on this exact form."""
    assert manifest().id == "d8f44a2be7acfb327aa39186e3e41dd16c7509e665c0073513aa98be4963bc6c"


def test_other_bytes_are_not_parsed() -> None:
    """Bytes that do not hash to the id are refused, even if they are a valid manifest."""
    other = manifest(name="Other")
    for data in (other.encode(), b"", b"\xc1"):
        with pytest.raises(WrongManifest):
            parse_manifest(data, manifest().id)


def test_chunks_have_sizes() -> None:
    """All chunks but the last are full; a chunk that does not exist has no size."""
    made = part("x", 2 * CHUNK_BYTES + 5)
    assert [made.chunk_size(i) for i in range(3)] == [CHUNK_BYTES, CHUNK_BYTES, 5]
    assert part("x", CHUNK_BYTES).chunk_size(0) == CHUNK_BYTES
    for index in (-1, 3):
        with pytest.raises(IndexError):
            made.chunk_size(index)


def test_a_part_is_named_by_its_chunks() -> None:
    """Another size, chunk or order makes another part; its name within a model does not."""
    made = part("x", CHUNK_BYTES + 2)
    first, second = made.chunks
    others = [Part("x", CHUNK_BYTES + 1, made.chunks), Part("x", made.size, (second, first))]
    others += [Part("x", made.size, (first, bytes(32))), Part("x", 2, made.chunks[:1])]
    assert len({made.hash, *(other.hash for other in others)}) == 5
    assert Part("y", made.size, made.chunks).hash == made.hash
    assert made.hash not in {digest.hex() for digest in made.chunks}


def test_parts_of_slices() -> None:
    """A stage needs the metadata and its layers, the ends the vocabulary too; nothing twice."""
    made = manifest()
    assert made.needed(1, 3) == ("metadata", "layer.1", "layer.2")
    rest = ("metadata", "tokenizer", "embedding")
    assert made.ends(1) == (*rest, "layer.0", "layer.2", "output")
    assert made.ends(2) == (*rest, "layer.0", "layer.1", "layer.2", "output")
    assert [made.part(name).name for name in made.ends(3)] == part_names(LAYERS)
    with pytest.raises(KeyError):
        made.part("layer.3")


GOOD_PART = [5, bytes(32)]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        pytest.param(0, "p2pinfer model 1", id="another format"),
        pytest.param(1, "", id="no name"),
        pytest.param(1, "x" * 129, id="name too long"),
        pytest.param(1, "a\nb", id="name of two lines"),
        pytest.param(1, "\x1b[2J", id="name that clears the screen"),
        pytest.param(1, b"Toy", id="name as bytes"),
        pytest.param(2, "x" * 129, id="licence too long"),
        pytest.param(2, 3, id="licence as number"),
        pytest.param(3, None, id="no architecture"),
        pytest.param(4, 0, id="no layers"),
        pytest.param(4, LAYERS + 1, id="more layers than parts"),
        pytest.param(4, 1 << 40, id="absurd layers"),
        pytest.param(4, True, id="layers as truth"),
        pytest.param(4, 3.0, id="layers as float"),
        pytest.param(5, 65_537, id="too wide"),
        pytest.param(6, -1, id="vocabulary below nought"),
        pytest.param(7, 1 << 26, id="context too long"),
        pytest.param(8, [], id="no tensors"),
        pytest.param(8, [["x", 0, [1]]] * 16_385, id="too many tensors"),
        pytest.param(8, [["x" * 64, 0, [1]]], id="tensor name too long"),
        pytest.param(8, [["x", 256, [1]]], id="tensor type too high"),
        pytest.param(8, [["x", 0, []]], id="tensor of no dimensions"),
        pytest.param(8, [["x", 0, [1] * 5]], id="tensor of five dimensions"),
        pytest.param(8, [["x", 0, [0]]], id="empty tensor"),
        pytest.param(8, [["x", 0, "ab"]], id="shape as text"),
        pytest.param(8, [["x", 0, [1 << 41]]], id="absurd tensor"),
        pytest.param(8, [["x", 0]], id="tensor without shape"),
        pytest.param(9, [], id="no parts"),
        pytest.param(9, [GOOD_PART] * 6, id="a part too few"),
        pytest.param(9, [GOOD_PART] * 8, id="a part too many"),
        pytest.param(9, [[5, bytes(32), bytes(32)]] * 7, id="a field too many"),
        pytest.param(9, [[5, bytes(33)]] * 7, id="half a chunk's hash"),
        pytest.param(9, [[5, bytes(64)]] * 7, id="a chunk too many"),
        pytest.param(9, [[5, "0" * 32]] * 7, id="chunks as text"),
        pytest.param(9, [[0, b""]] * 7, id="empty part"),
        pytest.param(9, [[1 << 37, bytes(32)]] * 7, id="absurd part"),
        pytest.param(9, [[True, bytes(32)]] * 7, id="size as truth"),
    ],
)
def test_each_limit_holds(place: int, value: Any) -> None:
    """One value over its limit, or of another type, spoils a manifest; nothing is coerced."""
    spoilt = values()
    spoilt[place] = value
    data = msgpack.packb(spoilt)
    with pytest.raises(BadManifest):
        parse_manifest(data, ModelId(blake3(data).hexdigest()))


def test_the_unspoiled_values_are_accepted() -> None:
    """The values that the test above changes are valid."""
    good = values()
    good[9] = [GOOD_PART] * 7
    assert parse_manifest(msgpack.packb(good)).part("output").size == 5


def test_only_the_canonical_form_is_a_manifest() -> None:
    """Other bytes with the same meaning would give the same model another id."""
    longer = b"\xdc\x00\x0a" + manifest().encode()[1:]  # the array's length in two bytes
    assert msgpack.unpackb(longer) == values()
    for data in (longer, manifest().encode() + b"\xc0"):
        with pytest.raises(BadManifest):
            parse_manifest(data)


def test_a_manifest_over_the_limit_is_refused() -> None:
    """It is not parsed."""
    with pytest.raises(BadManifest, match="too long"):
        parse_manifest(bytes(MANIFEST_BYTES_MAX + 1))


def long_manifest() -> Manifest:
    """Make up a manifest of 1 TiB, in parts of which only the hashes are known."""
    parts = (Part(n, (1 << 40) // 65, (), part(n, 5).hash) for n in part_names(61))
    return manifest(layers=61, parts=tuple(parts))


def test_a_manifest_of_a_tebibyte_names_its_parts() -> None:
    """It fits into one message, reads back, and gives each part its chunks once they are listed."""
    made = long_manifest()
    data = made.encode()
    assert (len(data) < 4000, made.size) == (True, (1 << 40) // 65 * 65)
    parsed = parse_manifest(data, made.id)
    assert (parsed, parsed.encode(), parsed.is_long) == (made, data, True)
    assert (parsed.parts[0].chunks, parsed.parts[0].chunk_count) == ((), 16_132)


def test_a_list_gives_a_part_its_chunks() -> None:
    """Hashes that are not the part's are refused."""
    whole = part("x", 2 * CHUNK_BYTES + 5)
    bare = Part("x", whole.size, (), whole.hash)
    assert bare == whole
    good = b"".join(whole.chunks)
    assert bare.listed(good).chunks == whole.chunks
    for wrong in (b"", good[32:], good + bytes(32), bytes(32) + good[32:]):
        with pytest.raises(WrongList):
            bare.listed(wrong)


def test_the_same_model_has_one_form_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest manifest that lists chunks lists them, and no such model may name its parts."""
    small = manifest()
    listed = small.encode()
    monkeypatch.setattr(manifests, "LISTED_BYTES_MAX", len(listed))
    assert manifest().encode() == listed
    monkeypatch.setattr(manifests, "LISTED_BYTES_MAX", len(listed) - 1)
    named = manifest().encode()
    assert msgpack.unpackb(named)[0] == LONG_FORMAT
    monkeypatch.undo()
    with pytest.raises(BadManifest):
        parse_manifest(named)


def test_invalid_manifests_cannot_be_built() -> None:
    """A part whose chunks do not add up to its size, or out of place, cannot be built here."""
    with pytest.raises(BadManifest, match="chunks"):
        Part("x", CHUNK_BYTES + 1, (bytes(32),))
    with pytest.raises(BadManifest, match="parts"):
        manifest(parts=tuple(part(name, 5) for name in reversed(part_names(LAYERS))))
    assert values()[0] == FORMAT


def judge(data: bytes) -> None:
    """Parse the bytes, which must raise BadManifest or give a manifest that encodes to them."""
    try:
        parsed = parse_manifest(data)
    except BadManifest:
        return
    assert parsed.encode() == data


@settings(max_examples=100)
@given(st.randoms(use_true_random=False))
def test_damaged_bytes_are_parsed_or_refused(random: Any) -> None:
    """A manifest with bytes changed, removed or inserted is valid or refused: 10,000 cases.

    A hundred per example: Hypothesis itself spends far more on an example.
    """
    whole = manifest().encode()
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(random.randint(1, 3)):
            at = random.randrange(len(data) + 1)
            data[at : at + random.randrange(3)] = random.randbytes(random.randrange(3))
        judge(bytes(data))


@settings(max_examples=30)
@given(st.randoms(use_true_random=False))
def test_noise_is_no_manifest(random: Any) -> None:
    """Random bytes, 50 at a time, are refused and nothing else happens."""
    for _ in range(50):
        judge(random.randbytes(random.randrange(80)))


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 63) | st.text() | st.binary() | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=2),
)


@settings(max_examples=300)
@given(st.dictionaries(st.integers(1, 9), anything, min_size=1, max_size=3))
def test_well_packed_nonsense_is_parsed_or_refused(changes: dict[int, Any]) -> None:
    """Any values for a manifest's fields are accepted or refused."""
    spoilt = [changes.get(place, value) for place, value in enumerate(values())]
    try:
        data = msgpack.packb(spoilt)
    except ValueError:  # a lone surrogate, which msgpack cannot write
        return
    judge(data)


def adapted(*names: str) -> tuple[Part, ...]:
    """Make up parts of an adapter."""
    return tuple(part(name, 9) for name in names)


def child() -> Manifest:
    """Make up the manifest of the toy with an adapter of two of its parts."""
    return child_of(manifest(), "Child", None, adapted("adapter.layer.1", "adapter.output"))


def test_a_child_reads_back() -> None:
    """It holds its base, and asks for what the adapter has for each stage, and no more."""
    made = child()
    parsed = parse_manifest(made.encode(), made.id)
    assert (parsed, parsed.id, parsed.base) == (made, made.id, manifest())
    assert made.parts == (*manifest().parts, *made.adapter)
    assert made.needed(1, 2) == ("metadata", "layer.1", "adapter.layer.1")
    assert made.needed(2, 3) == ("metadata", "layer.2")
    assert made.ends(1) == (*manifest().ends(1), "adapter.output")
    assert made.layer_size(1) == manifest().layer_size(1) + 9
    assert made.id != child_of(manifest(), "Child", "mit", made.adapter).id


def test_the_bytes_of_a_child_do_not_change() -> None:
    """Ids of models in use depend on this exact form."""
    assert child().id == "4747246606c6108808a0d9a98eb13008d2114a24b695932ad1249ad175b8aea4"


@pytest.mark.parametrize(
    "names",
    [
        pytest.param((), id="none"),
        pytest.param(("adapter.output", "adapter.layer.1"), id="in another order"),
        pytest.param(("adapter.layer.1", "adapter.layer.1"), id="twice"),
        pytest.param(("adapter.layer.3",), id="of a layer that is not there"),
        pytest.param(("adapter.metadata",), id="of what no adapter changes"),
        pytest.param(("layer.1",), id="of the base"),
    ],
)
def test_adapters_of_other_parts_are_refused(names: tuple[str, ...]) -> None:
    """Made here, or sent by a peer."""
    with pytest.raises(BadManifest):
        child_of(manifest(), "Child", None, adapted(*names))
    rows = [[each.name, each.size, b"".join(each.chunks)] for each in adapted(*names)]
    data = msgpack.packb([CHILD_FORMAT, "Child", None, manifest().encode(), rows])
    with pytest.raises(BadManifest):
        parse_manifest(data)


def test_a_childs_child_is_refused() -> None:
    """However deep: nobody's bytes decide how often they are looked into."""
    with pytest.raises(BadManifest):
        child_of(child(), "Grandchild", None, adapted("adapter.layer.0"))
    data, rows = manifest().encode(), [["adapter.layer.1", 9, bytes(32)]]
    for _ in range(3):
        data = msgpack.packb([CHILD_FORMAT, "Child", None, data, rows])
    with pytest.raises(BadManifest):
        parse_manifest(data)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (1, ""),
        (1, 3),
        (2, "x" * 129),
        (3, b""),
        (3, "text"),
        (3, manifest().encode() + b"\0"),
        (4, None),
        (4, [["adapter.layer.1", 9]]),
        (4, [["adapter.layer.1", 0, bytes(32)]]),
        (4, [["adapter.layer.1", 9, bytes(31)]]),
        (4, [["adapter.layer.1", 9, b""]]),
        (4, [["adapter.layer.1", 9, bytes(64)]]),
        (4, [[b"adapter.layer.1", 9, bytes(32)]]),
    ],
)
def test_faulty_children_are_refused(place: int, value: Any) -> None:
    """Each value of the array, wrong."""
    held = msgpack.unpackb(child().encode())
    held[place] = value
    with pytest.raises(BadManifest):
        parse_manifest(msgpack.packb(held))
