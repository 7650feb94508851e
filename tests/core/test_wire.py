"""The codec: every message reads back unchanged; all other bytes are refused."""

from typing import Any, get_args

import msgpack
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pinfer.core.advertisement import (
    ADVERTISEMENTS_MAX,
    KNOWN_MAX,
    SIGNED_BYTES_MAX,
    Advertisement,
    Heard,
    Known,
)
from p2pinfer.core.checks import ADDRESS_CHARS_MAX, ADDRESSES_MAX, LAYERS_MAX, POSITIONS_MAX
from p2pinfer.core.evidence import (
    CASES_MAX,
    OPENING_BYTES_MAX,
    AskRows,
    Case,
    Cases,
    Follow,
    Made,
    Opening,
    ProofIs,
    Settle,
    Settled,
    WantProof,
)
from p2pinfer.core.exchange import BUCKETS, DIGEST_BYTES, Compare, Differs, Wanted
from p2pinfer.core.fraud import FILE_BYTES_MAX
from p2pinfer.core.ids import ModelId, PartHash, PeerId, PlanId, SessionId
from p2pinfer.core.kv_root import STATEMENT_BYTES, SignedKv
from p2pinfer.core.limits import ROWS_PER_DECODE_MAX
from p2pinfer.core.manifest import CHUNK_BYTES, LIST_BYTES_MAX, MANIFEST_BYTES_MAX
from p2pinfer.core.messages import (
    BITMAP_BYTES_MAX,
    CHUNKS_PER_QUESTION_MAX,
    PARTS_PER_QUESTION_MAX,
    ROUTE_HOPS_MAX,
    ROWS_BYTES_MAX,
    TEXT_CHARS_MAX,
    AskChunks,
    AskHashes,
    AskHeld,
    AskManifest,
    Attach,
    Attached,
    Chunk,
    Connect,
    Connected,
    Denied,
    Dtype,
    Expect,
    Expecting,
    HashesAre,
    Held,
    Idle,
    Leaving,
    Link,
    Linked,
    Lost,
    ManifestIs,
    Message,
    Open,
    Opened,
    Refusal,
    Refused,
    Step,
)
from p2pinfer.core.proving import (
    CELLS_BYTES_MAX,
    PLEDGE_BYTES_MAX,
    PROVEN_ROWS_MAX,
    STEP_BYTES_MAX,
    AskCells,
    AskLayers,
    AskSteps,
    CellRows,
    CellsAre,
    PledgeIs,
    StepsAre,
)
from p2pinfer.core.receipts import BODY_BYTES, Signed
from p2pinfer.core.shown_layers import ShownLayers
from p2pinfer.core.statement import STATEMENTS_MAX, WORK_MAX
from p2pinfer.core.storage import NO_PLAN, SPACE_BYTES_MAX, AskKept, AskPlan, KeptIs, PlanIs
from p2pinfer.core.stripes import PLAN_BYTES_MAX
from p2pinfer.core.traced import Traced
from p2pinfer.core.wire import BadMessage, decode, encode
from tests.support.good_messages import BODY, CASE, GOOD, MODEL, PEER, SESSION, STATEMENT

KINDS: tuple[type[Any], ...] = get_args(Message)
CHUNKS_MAX = 8 * BITMAP_BYTES_MAX

OPEN = Open(SESSION, MODEL, PEER, PEER, 1, 10, 4096)

texts = st.text(st.characters(exclude_categories=["Cs"]))
names = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=128)
peers = st.text("123456789ABCDEFGHJKLMNPQRSTUVWXYZ", min_size=46, max_size=64).map(PeerId)
models = st.text("0123456789abcdef", min_size=64, max_size=64).map(ModelId)
sessions = st.binary(min_size=16, max_size=16).map(SessionId)
addresses = st.lists(names, max_size=ADDRESSES_MAX)
layers = st.integers(0, LAYERS_MAX)
sizes = st.integers(1, POSITIONS_MAX)
counters = st.integers(0, 1 << 62)
heard = st.builds(
    Heard, st.binary(max_size=200), st.binary(min_size=64, max_size=64), st.integers(0, 1 << 40)
)
bodies = st.binary(min_size=BODY_BYTES, max_size=BODY_BYTES)
signed = st.builds(Signed, bodies, st.binary(min_size=64, max_size=64))
hashes = st.binary(min_size=32, max_size=32)
some_bytes = st.binary(min_size=4, max_size=40)
positions = st.integers(0, POSITIONS_MAX - 1)
layers_within = st.integers(0, LAYERS_MAX - 1)
messages = st.one_of(
    st.builds(
        Open,
        sessions,
        models,
        peers,
        peers,
        layers,
        layers,
        sizes,
        st.sampled_from(Dtype),
        st.binary(min_size=32, max_size=32),
    ),
    st.sampled_from([Opened(), Leaving(), Linked(), Attached()]),
    st.builds(Connect, counters, peers, addresses.map(tuple), counters, counters),
    st.builds(Connected, counters),
    st.builds(Expect, counters, peers),
    st.builds(Expecting, counters, counters),
    st.builds(Idle, counters),
    st.builds(Lost, peers, st.text(max_size=TEXT_CHARS_MAX)),
    st.builds(Link, sessions),
    st.builds(Attach, sessions, counters),
    st.builds(
        Step,
        counters,
        st.integers(0, POSITIONS_MAX),
        st.integers(1, ROWS_PER_DECODE_MAX),
        st.booleans(),
        st.binary(max_size=300),
        st.lists(counters, max_size=5).map(tuple),
    ),
    st.builds(Refused, st.sampled_from(Refusal), texts.map(lambda t: t[:TEXT_CHARS_MAX]), peers),
    heard,
    st.builds(Known, st.lists(heard, max_size=3).map(tuple), st.booleans()),
    st.builds(
        Compare,
        models,
        st.binary(max_size=BUCKETS * DIGEST_BYTES),
        st.binary(min_size=8, max_size=8),
    ),
    st.builds(Differs, st.integers(0, (1 << BUCKETS) - 1), st.binary(max_size=300), st.booleans()),
    st.builds(Wanted, st.binary(max_size=300)),
    st.builds(
        Advertisement,
        peers,
        addresses.map(tuple),
        models,
        names,
        st.integers(1, LAYERS_MAX),
        layers,
        layers,
        sizes,
        st.text("0123456789abcdef", min_size=32, max_size=32),
        counters,
    ),
    st.builds(AskManifest, counters, models),
    st.builds(ManifestIs, counters, st.binary(max_size=300)),
    st.builds(AskKept, counters, models),
    st.builds(KeptIs, counters, models.map(PlanId) | st.just(NO_PLAN), st.integers(0, 1 << 50)),
    st.builds(AskPlan, counters, models),
    st.builds(PlanIs, counters, st.binary(max_size=300)),
    st.builds(AskHashes, counters, models, models.map(PartHash)),
    st.builds(HashesAre, counters, st.binary(min_size=1, max_size=300)),
    st.builds(AskHeld, counters, models, st.lists(models.map(PartHash), max_size=5).map(tuple)),
    st.builds(Held, counters, st.lists(st.binary(max_size=9), max_size=5).map(tuple)),
    st.builds(
        AskChunks,
        counters,
        models,
        models.map(PartHash),
        st.lists(st.integers(0, CHUNKS_MAX - 1), min_size=1, max_size=CHUNKS_PER_QUESTION_MAX).map(
            tuple
        ),
    ),
    st.builds(Chunk, counters, st.binary(min_size=1, max_size=300)),
    st.builds(Denied, counters, st.sampled_from(Refusal)),
    st.builds(Follow, sessions),
    st.builds(Made, signed),
    st.builds(Settle, counters, sizes),
    st.builds(Settled, counters, signed),
    st.builds(AskRows, counters, st.integers(0, POSITIONS_MAX), st.integers(1, 48)),
    st.builds(Opening, counters, st.just(b"\0\1"), st.binary(min_size=1, max_size=300)),
    st.builds(Cases, st.lists(st.just(Case(*CASE)), max_size=3).map(tuple)),
    st.builds(WantProof, st.binary(max_size=32)),
    st.builds(ProofIs, st.binary(max_size=300)),
    st.builds(AskCells, sessions, signed),
    st.builds(
        CellsAre,
        st.builds(SignedKv, st.just(bytes(STATEMENT_BYTES)), st.binary(min_size=64, max_size=64)),
        st.lists(hashes, min_size=1, max_size=3).map(tuple),
    ),
    st.builds(AskSteps, st.just((0, 9)), st.binary(min_size=2, max_size=300)),
    st.builds(
        AskLayers,
        st.lists(
            st.builds(ShownLayers, st.integers(0, 99), st.integers(9, 12), st.integers(0, 9)),
            min_size=1,
            max_size=PROVEN_ROWS_MAX,
        ).map(tuple),
    ),
    st.builds(
        PledgeIs,
        positions,
        st.binary(min_size=1, max_size=300),
        st.binary(min_size=64, max_size=64),
        st.lists(hashes, max_size=3).map(tuple),
        st.binary(min_size=2, max_size=300),
        st.lists(hashes, max_size=3).map(tuple),
        st.lists(hashes, max_size=3).map(tuple),
    ),
    st.builds(CellRows, layers_within, sizes, some_bytes, some_bytes),
    st.builds(
        StepsAre,
        positions,
        layers_within,
        some_bytes,
        st.lists(some_bytes, min_size=len(Traced), max_size=len(Traced)).map(tuple),
        hashes,
    ),
)


def judge(data: bytes) -> None:
    """Decode, and check that an accepted message can be encoded and decoded again."""
    try:
        message = decode(data, *KINDS)
    except BadMessage:
        return
    assert isinstance(message, KINDS)
    assert decode(encode(message), *KINDS) == message


@settings(max_examples=400)
@given(messages)
def test_every_message_reads_back(message: Message) -> None:
    """What is encoded decodes to the same message, of the same kind."""
    assert decode(encode(message), *KINDS) == message
    assert type(decode(encode(message), *KINDS)) is type(message)


@settings(max_examples=50)
@given(messages, messages)
def test_only_expected_kinds_are_accepted(message: Message, due: Message) -> None:
    """A valid message of an unexpected kind is refused."""
    if type(message) is not type(due):
        with pytest.raises(BadMessage, match="not due"):
            decode(encode(message), type(due))


@settings(max_examples=50)
@given(st.randoms(use_true_random=False))
def test_noise_is_no_message(random: Any) -> None:
    """Random bytes, 100 at a time, are refused and nothing else happens."""
    for _ in range(100):
        judge(random.randbytes(random.randrange(80)))


@settings(max_examples=100)
@given(messages, st.randoms(use_true_random=False))
def test_damaged_bytes_are_decoded_or_refused(message: Message, random: Any) -> None:
    """A message with bytes changed, removed or inserted, 60 times, is valid or refused."""
    whole = encode(message)
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(random.randint(1, 3)):
            at = random.randrange(len(data) + 1)
            data[at : at + random.randrange(3)] = random.randbytes(random.randrange(3))
        judge(bytes(data))


@settings(max_examples=200)
@given(
    st.sampled_from([kind.__name__ for kind in KINDS]),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-5, 1 << 63)
        | st.text()
        | st.binary()
        | st.floats(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=2),
    ).filter(lambda value: isinstance(value, list)),
)
def test_well_packed_nonsense_is_decoded_or_refused(name: str, values: list[Any]) -> None:
    """Any values under a message's name are accepted or refused."""
    try:
        data = msgpack.packb([name, *values])
    except ValueError:  # a lone surrogate, which msgpack cannot write
        return
    judge(data)


def test_every_kind_has_good_values() -> None:
    """A new kind of message must come with values here, and with limits in the test below."""
    fieldless = {"Opened", "Leaving", "Linked", "Attached", "AskTasks"}
    assert set(GOOD) | fieldless == {kind.__name__ for kind in KINDS}


def test_the_unspoiled_values_are_accepted() -> None:
    """The values that the next test changes are valid."""
    for name, values in GOOD.items():
        decode(msgpack.packb([name, *values]), *KINDS)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        pytest.param("Open", 0, SESSION[:15], id="short session"),
        pytest.param("Open", 0, SESSION.hex(), id="session as text"),
        pytest.param("Open", 1, MODEL[:-1] + "g", id="model not hexadecimal"),
        pytest.param("Open", 1, MODEL + "\n", id="model and a line end"),
        pytest.param("Open", 2, "x" * 65, id="peer too long"),
        pytest.param("Open", 3, "x" * 45, id="peer too short"),
        pytest.param("Open", 4, "1", id="layer as text"),
        pytest.param("Open", 5, LAYERS_MAX + 1, id="layer too high"),
        pytest.param("Open", 4, -1, id="layer below nought"),
        pytest.param("Open", 6, "4096", id="context as text"),
        pytest.param("Open", 6, 4096.0, id="context as float"),
        pytest.param("Open", 6, True, id="context as truth"),
        pytest.param("Open", 6, 0, id="no context"),
        pytest.param("Open", 7, "f64", id="unknown dtype"),
        pytest.param("Connect", 2, ["/a"] * (ADDRESSES_MAX + 1), id="addresses"),
        pytest.param("Connect", 2, ["/" * (ADDRESS_CHARS_MAX + 1)], id="address"),
        pytest.param("Connect", 2, ["/a\x1b[2J"], id="address that clears a screen"),
        pytest.param("Connect", 2, "/a", id="text for a list"),
        pytest.param("Connect", 3, -1, id="step below nought"),
        pytest.param("Expecting", 1, 1.0, id="step as float"),
        pytest.param("Idle", 0, -1, id="idle from a step below nought"),
        pytest.param("Lost", 1, "n" * (TEXT_CHARS_MAX + 1), id="reason too long"),
        pytest.param("Link", 0, SESSION[1:], id="short session of a link"),
        pytest.param("Step", 0, -1, id="number below nought"),
        pytest.param("Step", 1, POSITIONS_MAX + 1, id="position too high"),
        pytest.param("Step", 2, 0, id="no rows"),
        pytest.param("Step", 2, ROWS_PER_DECODE_MAX + 1, id="too many rows"),
        pytest.param("Step", 3, 1, id="number for truth"),
        pytest.param("Step", 4, "rows", id="rows as text"),
        pytest.param("Step", 4, bytes(ROWS_BYTES_MAX + 1), id="too many bytes"),
        pytest.param("Step", 5, [0] * (ROUTE_HOPS_MAX + 1), id="too many times"),
        pytest.param("Step", 5, [0.5], id="time as float"),
        pytest.param("Step", 5, b"abc", id="bytes for a list"),
        pytest.param("Refused", 0, "maybe", id="unknown refusal"),
        pytest.param("Refused", 1, "n" * (TEXT_CHARS_MAX + 1), id="text too long"),
        pytest.param("Refused", 3, -1, id="come back before"),
        pytest.param("Known", 0, [[b"body", bytes(63), 0]], id="short signature"),
        pytest.param("Known", 0, [[b"body", bytes(64), -1]], id="age below nought"),
        pytest.param("Known", 0, [[b"body", bytes(64), 0]] * (KNOWN_MAX + 1), id="too many known"),
        pytest.param("Heard", 0, bytes(SIGNED_BYTES_MAX + 1), id="advertisement too long"),
        pytest.param("Compare", 0, MODEL[1:], id="short model"),
        pytest.param("Compare", 1, bytes(BUCKETS * DIGEST_BYTES + 1), id="too many digests"),
        pytest.param("Compare", 2, bytes(7), id="half a digest of models"),
        pytest.param("Differs", 0, -1, id="buckets below nought"),
        pytest.param("Differs", 1, bytes(16 * ADVERTISEMENTS_MAX + 1), id="too many peers"),
        pytest.param("Wanted", 0, bytes(8 * ADVERTISEMENTS_MAX + 1), id="too many wanted"),
        pytest.param("Advertisement", 3, "n" * 129, id="name too long"),
        pytest.param("Advertisement", 3, "n\x1b[2J", id="name that clears a terminal"),
        pytest.param("Advertisement", 8, "0" * 31, id="short class"),
        pytest.param("ManifestIs", 1, bytes(MANIFEST_BYTES_MAX + 1), id="manifest too long"),
        pytest.param("AskHeld", 2, [MODEL] * (PARTS_PER_QUESTION_MAX + 1), id="too many parts"),
        pytest.param("AskHeld", 2, [MODEL[1:]], id="short part"),
        pytest.param("Held", 1, [b""] * (PARTS_PER_QUESTION_MAX + 1), id="too many bitmaps"),
        pytest.param("Held", 1, [bytes(BITMAP_BYTES_MAX + 1)], id="bitmap too long"),
        pytest.param("AskChunks", 2, MODEL.upper(), id="part in capitals"),
        pytest.param("AskChunks", 3, [CHUNKS_MAX], id="chunk beyond the longest part"),
        pytest.param("AskChunks", 3, [-1], id="chunk below nought"),
        pytest.param("AskChunks", 3, [], id="no chunks"),
        pytest.param("AskChunks", 3, [0] * (CHUNKS_PER_QUESTION_MAX + 1), id="too many chunks"),
        pytest.param("Chunk", 1, b"", id="empty chunk"),
        pytest.param("HashesAre", 1, bytes(LIST_BYTES_MAX + 1), id="list too long"),
        pytest.param("HashesAre", 1, b"", id="empty list"),
        pytest.param("Chunk", 1, bytes(CHUNK_BYTES + 1), id="chunk too long"),
        pytest.param("Denied", 1, "maybe", id="unknown denial"),
        pytest.param("KeptIs", 1, MODEL[1:], id="short plan"),
        pytest.param("KeptIs", 2, SPACE_BYTES_MAX + 1, id="too much space"),
        pytest.param("PlanIs", 1, bytes(PLAN_BYTES_MAX + 1), id="plan too long"),
        pytest.param("Made", 0, [BODY[1:], bytes(64)], id="short receipt"),
        pytest.param("Made", 0, [BODY, bytes(65)], id="long signature"),
        pytest.param("Settle", 1, 0, id="nothing to settle"),
        pytest.param("Settle", 1, POSITIONS_MAX + 1, id="too much to settle"),
        pytest.param("AskRows", 2, ROWS_PER_DECODE_MAX + 1, id="too many rows to open"),
        pytest.param("Opening", 1, b"\3", id="a fourth regime"),
        pytest.param("Opening", 1, bytes(ROWS_PER_DECODE_MAX + 1), id="too many regimes"),
        pytest.param("Opening", 2, bytes(OPENING_BYTES_MAX + 1), id="opening too long"),
        pytest.param("Open", 8, bytes(31), id="short seal"),
        pytest.param("Cases", 0, [CASE] * (CASES_MAX + 1), id="too many cases"),
        pytest.param("Cases", 0, [[*CASE[:8], POSITIONS_MAX + 1]], id="a case too long"),
        pytest.param("WantProof", 0, bytes(33), id="long digest"),
        pytest.param("ProofIs", 0, bytes(FILE_BYTES_MAX + 1), id="proof too long"),
        pytest.param("Owe", 0, [*STATEMENT[:3], WORK_MAX + 1, bytes(64)], id="too much work"),
        pytest.param("Owe", 0, [*STATEMENT[:2], 0, 5, bytes(64)], id="statement number nought"),
        pytest.param("Owe", 0, [*STATEMENT[:4], bytes(63)], id="short signature"),
        pytest.param("Owe", 0, [*STATEMENT[:3], 0, bytes(64)], id="a statement of nothing"),
        pytest.param("GrantIs", 0, bytes(5000), id="an envelope that is too long"),
        pytest.param("Vouch", 0, [STATEMENT] * (STATEMENTS_MAX + 1), id="too many statements"),
        pytest.param("AskCells", 1, [BODY[1:], bytes(64)], id="short receipt for cells"),
        pytest.param("CellsAre", 0, [bytes(STATEMENT_BYTES - 1), bytes(64)], id="short statement"),
        pytest.param("CellsAre", 1, [], id="no layers"),
        pytest.param("CellsAre", 1, [bytes(31)], id="short hash of a layer"),
        pytest.param("AskSteps", 0, [], id="no positions"),
        pytest.param("AskSteps", 0, list(range(PROVEN_ROWS_MAX + 1)), id="too many positions"),
        pytest.param("AskSteps", 0, [7, 7], id="a position twice"),
        pytest.param("AskSteps", 0, [POSITIONS_MAX], id="position to open too high"),
        pytest.param("AskLayers", 0, [], id="layers of no rows"),
        pytest.param("AskLayers", 0, [[0, 1, 1]] * (PROVEN_ROWS_MAX + 1), id="of too many rows"),
        pytest.param("AskLayers", 0, [[0, 0, 0]], id="no layers to open"),
        pytest.param("AskLayers", 0, [[0, 1, 2]], id="K and V without steps"),
        pytest.param("AskLayers", 0, [[LAYERS_MAX, 1, 1]], id="a layer that no model has"),
        pytest.param("PledgeIs", 1, bytes(PLEDGE_BYTES_MAX + 1), id="pledge too long"),
        pytest.param("PledgeIs", 3, [bytes(32)] * 47, id="path too long"),
        pytest.param("CellRows", 2, bytes(CELLS_BYTES_MAX + 1), id="too many K rows"),
        pytest.param("CellRows", 1, 0, id="cells of no positions"),
        pytest.param("CellRows", 3, b"", id="no V rows"),
        pytest.param("StepsAre", 3, [bytes(4)] * 11, id="a step missing"),
        pytest.param("StepsAre", 3, [bytes(STEP_BYTES_MAX // 2)] * 12, id="steps too long"),
        pytest.param("StepsAre", 4, bytes(31), id="short tail"),
    ],
)
def test_each_limit_holds(name: str, field: int, value: Any) -> None:
    """One value over its limit, or of another type, invalidates it; nothing is coerced."""
    values = GOOD[name].copy()
    values[field] = value
    with pytest.raises(BadMessage):
        decode(msgpack.packb([name, *values]), *KINDS)


@pytest.mark.parametrize("name", ["Open", "Connect", "Refused"])
def test_the_number_of_fields_is_checked(name: str) -> None:
    """One field too few or too many invalidates a message."""
    for values in (GOOD[name][:-3], [*GOOD[name], 0]):  # two of Open's have defaults
        with pytest.raises(BadMessage):
            decode(msgpack.packb([name, *values]), *KINDS)


def test_invalid_messages_cannot_be_built() -> None:
    """A message over a limit cannot be built here either."""
    with pytest.raises(ValueError, match="context"):
        Open(SESSION, MODEL, PEER, PEER, 1, 10, 0)
    with pytest.raises(ValueError, match="text"):
        Refused(Refusal.BUSY, "n" * (TEXT_CHARS_MAX + 1), PEER)


def test_a_pledge_says_no_more_to_those_of_before() -> None:
    """They ask for all layers, and would reject the leaves."""
    said = PledgeIs(7, b"pledge", bytes(64), (bytes(32),), b"row", ())
    assert len(msgpack.unpackb(encode(said))) == 7
    assert len(msgpack.unpackb(encode(evolve(said, leaves=(bytes(32),))))) == 8
