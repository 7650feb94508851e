"""Ids, each of its own type, so that a type checker distinguishes them."""

from typing import NamedTuple, NewType

PeerId = NewType("PeerId", str)
"""A libp2p peer id in base58, for example ``12D3KooW…``: the hash of an Ed25519 public key."""

ModelId = NewType("ModelId", str)
"""BLAKE3 hash of the model's manifest, 64 hexadecimal digits."""

SessionId = NewType("SessionId", bytes)
"""16 random bytes drawn by the requester: one sequence of positions and its KV cells."""

PartHash = NewType("PartHash", str)
"""BLAKE3 of a part's bytes, 64 hexadecimal digits."""

PlanId = NewType("PlanId", str)
"""BLAKE3 hash of a model's storage plan, 64 hexadecimal digits."""


class ChunkId(NamedTuple):
    """A chunk of a part."""

    part: PartHash
    number: int
