"""Certificates: any change makes one fail, and the error says where."""

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from p2pinfer.core.certificate import MAGIC, Certificate, StageClaim, check, parse, to_sign
from p2pinfer.core.ids import ModelId, SessionId
from p2pinfer.core.receipts import BODY_BYTES, SIGNED_AS, Receipt, Signed, Terms, seal_of
from p2pinfer.core.regimes import Regime
from p2pinfer.core.sections import BadFile
from p2pinfer.core.trust import Audited, AuditVerdict
from p2pinfer.core.witness import runs_of
from transports.identity import Identity, verify

ME, *STAGES = (Identity(bytes([number]) * 32) for number in range(4))
NONCE = b"n" * 32
TERMS = Terms(SessionId(b"s" * 16), ModelId("ab" * 32), ME.peer_id, "f32", seal_of(NONCE))
ROWS = 40


def receipt(stage: int, position: int) -> Signed:
    """Sign for rows whose roots join up with those of the neighbours."""
    received, sent = (bytes([stage + side, position]) * 16 for side in (0, 1))
    first = 1 + 9 * stage
    body = Receipt(
        TERMS.digest(), first, first + 9, position, position, position, received, sent, b"c" * 16
    ).body()
    return Signed(body, STAGES[stage].sign(SIGNED_AS + body))


CLAIMS = tuple(
    StageClaim(key.peer_id, 1 + 9 * n, 10 + 9 * n, (receipt(n, 32), receipt(n, ROWS)))
    for n, key in enumerate(STAGES)
)
AUDITS = tuple(
    Audited(claim.peer, claim.first, claim.end, AuditVerdict.SAME, ("this machine",))
    for claim in CLAIMS
)
NO_RECEIPT = Signed(b"\xff" * BODY_BYTES, bytes(64))
CERTIFICATE = Certificate(
    TERMS, NONCE, 1.0, tuple(range(ROWS)), (30, 10), "An answer.", CLAIMS, AUDITS
)
BODY = CERTIFICATE.body()
FILE = BODY + ME.sign(to_sign(BODY))


def verdict(data: bytes) -> str:
    """Return where a file fails, or nothing."""
    try:
        found, body, signature = parse(data)
        check(found)
    except BadFile as error:
        return str(error)
    return "" if verify(found.terms.requester, to_sign(body), signature) else "signature"


def test_a_good_certificate_holds() -> None:
    """It reads back unchanged."""
    assert parse(FILE)[0] == CERTIFICATE
    assert verdict(FILE) == ""


def test_any_one_byte_changed_fails_and_says_where() -> None:
    """All bytes are tried: the error names the section that holds the byte, or the signature."""
    for at in range(len(FILE)):
        where = verdict(FILE[:at] + bytes([FILE[at] ^ 0x20]) + FILE[at + 1 :])
        assert where
        if at >= len(BODY):
            assert where == "signature"
        elif at >= len(MAGIC):
            assert where.startswith("section ")
            assert int(where.partition("bytes ")[2].partition(" to ")[0]) <= at


@given(st.integers(0, len(FILE) - 1), st.binary(max_size=3), st.integers(0, 3))
def test_removed_or_inserted_bytes_fail(at: int, put: bytes, lost: int) -> None:
    """At any place in the file."""
    data = FILE[:at] + put + FILE[at + lost :]
    assert (verdict(data) == "") == (data == FILE)


@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    """Also with the right beginning."""
    assert verdict(data)
    assert verdict(MAGIC + data)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"nonce": b"m" * 32}, "section session"),
        ({"tokens": tuple(range(ROWS - 1))}, "section tokens"),
        ({"regimes": (30, 11)}, "section tokens"),
        ({"stages": CLAIMS[:1] + CLAIMS[2:]}, "gap"),
        ({"stages": (CLAIMS[0], evolve(CLAIMS[1], first=9), CLAIMS[2])}, "section stage 1"),
        ({"stages": (evolve(CLAIMS[0], receipts=CLAIMS[0].receipts[:1]), *CLAIMS[1:])}, "stage 0"),
        ({"stages": (evolve(CLAIMS[0], receipts=(NO_RECEIPT,)), *CLAIMS[1:])}, "0: receipt 0:"),
        ({"audits": AUDITS[1:]}, "section audits"),
        ({"terms": evolve(TERMS, session=SessionId(b"t" * 16))}, "section stage 0"),
    ],
)
def test_a_certificate_that_contradicts_itself_fails(
    changes: dict[str, object], where: str
) -> None:
    """Even signed again by its author, who may write anything except stages' receipts."""
    body = evolve(CERTIFICATE, **changes).body()  # type: ignore[arg-type]
    assert where in verdict(body + ME.sign(to_sign(body)))


def test_more_may_be_audited_than_the_nonce_chose() -> None:
    """As when a stage died during an audit and was replaced: the required audits are included."""
    body = evolve(CERTIFICATE, rate=0.0).body()
    assert verdict(body + ME.sign(to_sign(body))) == ""


def test_neighbours_must_have_signed_for_the_same_rows() -> None:
    """Honest receipts of different sessions do not fit together."""
    odd = Receipt.parse(CLAIMS[1].receipts[0].body)
    body = evolve(odd, received=b"x" * 32).body()
    signed = Signed(body, STAGES[1].sign(SIGNED_AS + body))
    claims = (CLAIMS[0], evolve(CLAIMS[1], receipts=(signed, CLAIMS[1].receipts[1])), CLAIMS[2])
    body = evolve(CERTIFICATE, stages=claims).body()
    assert "at 32" in verdict(body + ME.sign(to_sign(body)))


@given(st.lists(st.sampled_from(Regime), min_size=1, max_size=60).map(tuple))
def test_regimes_read_back(regimes: tuple[Regime, ...]) -> None:
    """Runs stand for the positions' regimes."""
    runs = runs_of(regimes)
    assert evolve(CERTIFICATE, regimes=runs).regimes_by_position() == regimes
