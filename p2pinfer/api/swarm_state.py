"""What the page shows of the swarm: who serves what, and which answers are on their way."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import trio

from p2pinfer.api.gateway import Gateway
from p2pinfer.api.streams import event
from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.ids import PeerId
from p2pinfer.node.reach_words import way_to

LOOK_S = 0.25
"""How often a listener is told what has changed: as fast as an eye follows."""

GONE_S_MAX = 120.0
"""How long a peer that has left is still shown, as gone."""

GONE_MAX = 16
"""Shown at once: more would hide who is there."""

LISTENERS_MAX = 64
"""Pages that are open at once."""


class SwarmState:
    """Describes a gateway's swarm as of now."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._seen: dict[PeerId, tuple[float, Advertisement]] = {}
        self.listeners = 0

    def describe(self) -> dict[str, Any]:
        """Return the model, the peers and this gateway's own part."""
        swarm = self._gateway.swarm
        client, pool = swarm.client, swarm.pool
        missing = self._gateway.amiss()
        return {
            "model": {
                "id": client.model.id,
                "name": client.model.info.name,
                "layers": client.model.info.layers,
                "context": client.ends.context,
            },
            "kept": {"first": client.ends.first, "end": client.ends.end},
            "complete": not missing,
            "missing": missing,
            "peers": self._peers(),
            "sessions": {
                "running": pool.running,
                "waiting": pool.waiting,
                "idle": pool.idle,
                "max": pool.sessions_max,
            },
        }

    def answering(self) -> list[dict[str, Any]]:
        """Return the answers that are being made, and the stages that each runs through."""
        return [
            {
                "id": name,
                "prompt_tokens": answer.prompt_tokens,
                "read_tokens": min(answer.read(), answer.prompt_tokens),
                "tokens": answer.tokens,
                "tokens_per_second": answer.tokens_per_second,
                "route": answer.route,
            }
            for name, answer in self._gateway.running.items()
        ]

    async def events(self) -> AsyncGenerator[bytes]:
        """Yield what changes, for as long as somebody listens; the first says everything."""
        self.listeners += 1
        try:
            told: Mapping[str, Any] = {}
            while True:
                now = {"state": self.describe(), "answers": self.answering()}
                for name, value in now.items():
                    if told.get(name) != value:
                        yield event(value, name)
                told = now
                await trio.sleep(LOOK_S)
        finally:
            self.listeners -= 1

    def _peers(self) -> list[dict[str, Any]]:
        """Return all peers, those too that were there a moment ago."""
        client = self._gateway.swarm.client
        now = trio.current_time()
        here = {peer.peer for peer in client.peers()}
        self._seen |= {peer.peer: (now, peer) for peer in client.peers()}
        gone = sorted((at, peer) for peer, (at, _) in self._seen.items() if peer not in here)
        too_many = len(gone) - GONE_MAX
        for number, (at, peer) in enumerate(gone):
            if number < too_many or at < now - GONE_S_MAX:
                del self._seen[peer]
        found = [peer for _, peer in self._seen.values()]
        found.sort(key=lambda peer: (peer.first, peer.end, peer.peer))
        failed, trips = client.failed(), client.experiences.of(found).round_trip_s
        return [
            {
                **_describe(peer, _state(peer, here, failed)),
                "round_trip_ms": _rounded_ms(trips.get(peer.peer)),
                "way": way_to(
                    peer.addresses, client.relay_to(peer.peer), is_connected=peer.peer in trips
                ),
            }
            for peer in found
        ]


def _rounded_ms(seconds: float | None) -> float | None:
    """Return what a person reads of a time: more digits would change with every ping."""
    return None if seconds is None else max(1.0, float(f"{1000 * seconds:.1g}"))


def _state(peer: Advertisement, here: set[PeerId], failed: set[PeerId]) -> str:
    if peer.peer not in here:
        return "gone"
    if peer.peer in failed:
        return "failed"
    return "joining" if peer.first == peer.end else str(peer.state)


def _describe(peer: Advertisement, state: str) -> dict[str, Any]:
    return {
        "peer": peer.peer,
        "first": peer.first,
        "end": peer.end,
        "state": state,
        "context": peer.context,
        "numerics_class": peer.numerics_class,
        "row_us": peer.row_us,
        "sessions_free": peer.sessions_free,
        "sessions_max": peer.sessions_max,
        "queued_rows": peer.queued_rows,
    }
