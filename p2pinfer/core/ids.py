"""Ids, each of its own type, so that a type checker distinguishes them."""

from typing import NewType

PeerId = NewType("PeerId", str)
"""A libp2p peer id in base58, for example ``12D3KooW…``: the hash of an Ed25519 public key."""

ModelId = NewType("ModelId", str)
"""BLAKE3 hash of the model's manifest, 64 hexadecimal digits."""

SessionId = NewType("SessionId", bytes)
"""16 random bytes drawn by the requester: one sequence of positions and its KV cells."""

PartHash = NewType("PartHash", str)
"""BLAKE3 of a part's bytes, 64 hexadecimal digits."""
