"""Advertisements for tests: fields that a test does not name are ordinary."""

from typing import Any

from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.ids import ModelId, PeerId

MODEL = ModelId("ab" * 32)


def peer_id(name: str) -> PeerId:
    """Make a peer id of the right length out of a short name."""
    return PeerId(f"12D3Koo{name:x>45}")


def through(relay: str) -> str:
    """Make an address of a peer that is called through a relay of this short name."""
    return f"/memory/0/p2p/{peer_id(relay)}/p2p-circuit/p2p/it"


def advert(name: str, first: int, end: int, **fields: Any) -> Advertisement:
    """Make an advertisement."""
    defaults: dict[str, Any] = {
        "peer": peer_id(name),
        "addresses": (),
        "model": MODEL,
        "model_name": "toy",
        "layers": 1024,
        "first": first,
        "end": end,
        "context": 512,
        "numerics_class": "0" * 32,
        "sequence": 0,
    }
    return Advertisement(**(defaults | fields))
