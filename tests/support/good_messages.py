"""Values of every kind of message, as they stand on the wire."""

from typing import Any

from p2pinfer.core.exchange import BUCKETS
from p2pinfer.core.ids import ModelId, PeerId, SessionId
from p2pinfer.core.kv_root import STATEMENT_BYTES
from p2pinfer.core.receipts import BODY_BYTES
from p2pinfer.core.traced import Traced

PEER = PeerId("12D3KooW" + "x" * 44)
STATEMENT: list[Any] = [PEER, PEER, 1, 5, bytes(64)]
CASE: list[Any] = [bytes(32), "ab" * 32, PEER, PEER, 1, 10, 12, bytes(16), 96]
MODEL = ModelId("0123456789abcdef" * 4)
SESSION = SessionId(bytes(range(16)))
BODY = bytes(BODY_BYTES)

GOOD: dict[str, list[Any]] = {
    "Open": [SESSION, MODEL, PEER, PEER, 1, 10, 4096, "f32", bytes(32)],
    "Connect": [1, PEER, ["/a"], 0, 0],
    "Connected": [1],
    "Expect": [1, PEER],
    "Expecting": [1, 7],
    "Idle": [7],
    "Lost": [PEER, "gone"],
    "Link": [SESSION],
    "Attach": [SESSION, 7],
    "Step": [1, 0, 1, False, b"rows", []],
    "Refused": ["busy", "no", PEER, 250],
    "Heard": [b"body", bytes(64), 0],
    "Known": [[[b"body", bytes(64), 0]], True],
    "Compare": ["", b"", bytes(8)],
    "Differs": [(1 << BUCKETS) - 1, bytes(16), True],
    "Wanted": [bytes(8)],
    "Advertisement": [PEER, [], MODEL, "name", 30, 1, 10, 4096, "0" * 32, 7],
    "AskManifest": [1, MODEL],
    "ManifestIs": [1, b"bytes"],
    "AskHashes": [1, MODEL, MODEL],
    "HashesAre": [1, bytes(32)],
    "AskHeld": [1, MODEL, [MODEL]],
    "Held": [1, [b"\x01"]],
    "AskChunks": [1, MODEL, MODEL, [0, 3]],
    "Chunk": [1, b"bytes"],
    "Denied": [1, "not-held"],
    "AskKept": [1, MODEL],
    "KeptIs": [1, MODEL, 1 << 30],
    "AskPlan": [1, MODEL],
    "PlanIs": [1, b"bytes"],
    "Follow": [SESSION],
    "Made": [[BODY, bytes(64)]],
    "Settle": [1, 32],
    "Settled": [1, [BODY, bytes(64)]],
    "AskRows": [1, 0, 48],
    "Opening": [1, b"\0\1", b"rows"],
    "Cases": [[CASE]],
    "WantProof": [bytes(32)],
    "ProofIs": [b"proof"],
    "Owe": [STATEMENT],
    "Owed": [STATEMENT, bytes(64)],
    "Vouch": [[STATEMENT, [*STATEMENT, 1, 2]]],
    "AskGrant": [bytes(32), 7, bytes(1216), bytes(64)],
    "GrantIs": [b"envelope"],
    "StillIn": [b"proof"],
    "AskCells": [SESSION, [BODY, bytes(64)]],
    "CellsAre": [[bytes(STATEMENT_BYTES), bytes(64)], [bytes(32)]],
    "AskSteps": [[0, 7], b"rows"],
    "AskLayers": [[[3, 2, 1], [0, 4, 4]]],
    "PledgeIs": [7, b"pledge", bytes(64), [bytes(32)], b"row", []],
    "CellRows": [0, 2, b"keys", b"values"],
    "StepsAre": [7, 0, bytes(4), [bytes(4)] * len(Traced), bytes(32)],
    "LearningTask": [PEER, "name", MODEL, 4, 8, 0, 8, 10, 4000, 6, 3, 3, 9, 100, 1, 1, 1, 1],
    "RoundStatement": [PEER, MODEL, 1, 0, "join", bytes(32), 0, [], None, bytes(32), [], ["/a"]],
    "SignedBody": [b"body", bytes(64)],
    "AskSaid": [MODEL, [bytes(32)]],
    "SaidAre": [[[b"body", bytes(64)]]],
    "AskPayload": [bytes(32), 0],
    "PayloadIs": [b"bytes"],
}
"""What each kind of message holds, in its order."""
