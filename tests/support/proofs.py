"""Fraud proofs of a stage that signed for rows that no layers gave."""

import numpy as np
from attrs import evolve

from p2pinfer.core.fraud import FraudProof, to_sign
from p2pinfer.core.ids import ModelId, SessionId
from p2pinfer.core.receipts import SIGNED_AS, Receipt, Signed, Terms, seal_of
from p2pinfer.core.regimes import Regime
from p2pinfer.core.witness import Rows, runs_of
from transports.identity import Identity

AUTHOR, ACCUSED, OTHER = (Identity(bytes([number]) * 32) for number in range(3))
TERMS = Terms(SessionId(b"s" * 16), ModelId("ab" * 32), AUTHOR.peer_id, "f32", seal_of(b"n"))
ROWS = np.arange(40 * 4, dtype="<f4").reshape(40, 4)
REGIMES = (Regime.WIDE,) * 20 + (Regime.BLOCK,) * 10 + (Regime.NARROW,) * 10


def root_of(rows: bytes, regimes: tuple[Regime, ...]) -> bytes:
    """Commit to rows."""
    found = Rows(keep=False)
    for at, regime in enumerate(regimes):
        found.put(at, 1, rows[16 * at : 16 * at + 16], regime=regime)
    return found.tree.root(len(regimes))


RECEIVED = root_of(ROWS.tobytes(), REGIMES)
RECEIPT = Receipt(TERMS.digest(), 1, 10, 7, 40, 40, RECEIVED, b"x" * 32, b"c" * 16)


def signed(receipt: Receipt, by: Identity = ACCUSED) -> Signed:
    """Sign a receipt."""
    body = receipt.body()
    return Signed(body, by.sign(SIGNED_AS + body))


def file(proof: FraudProof, by: Identity = AUTHOR) -> bytes:
    """Write a proof's file."""
    body = proof.body()
    return body + by.sign(to_sign(body))


PROOF = FraudProof(TERMS, ACCUSED.peer_id, 12, (signed(RECEIPT),), runs_of(REGIMES), ROWS.tobytes())
TWO = FraudProof(
    TERMS, ACCUSED.peer_id, 12, (signed(RECEIPT), signed(evolve(RECEIPT, sent=b"y" * 32)))
)
FILE = file(PROOF)
