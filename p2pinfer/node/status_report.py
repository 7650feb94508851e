"""A peer's status, for other processes on its machine."""

from collections.abc import Callable
from typing import Any

from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.model_names import readable_name
from p2pinfer.node.reach_words import own_reach
from peers.serving.server import ServerStatistics
from peers.serving.stage import SessionStatistics
from transports.blocklist import GuardedTransport


def describe_peer(
    transport: GuardedTransport, statistics: Callable[[], ServerStatistics] | None, *, hidden: bool
) -> dict[str, Any]:
    """Return a peer's id and status; without statistics while it fetches its model."""
    reach = own_reach(transport.reachability, transport.addresses, transport.own_addresses)
    found: dict[str, Any] = {
        "role": "peer",
        "peer": transport.peer_id,
        "addresses": list(transport.addresses),
        "own_addresses": list(transport.own_addresses),
        "hidden": hidden,
        "reachability": transport.reachability.value,
        "reached": reach.words,
        "advice": reach.advice,
        "port_mapping": transport.port_mapping,
        "punching": dict(transport.punching),
        "state": "joining",
        "sessions": [],
    }
    if statistics is None:
        return found
    now = statistics()
    return found | _served(now.said) | {
        "resting": now.resting,
        "rows": now.rows,
        "queued_rows": now.queued_rows,
        "sessions": [_session(each) for each in now.sessions],
    }  # fmt: skip


def _served(said: Advertisement) -> dict[str, Any]:
    return {
        "model": said.model,
        "model_name": readable_name(said.model_name),
        "state": said.state.value,
        "layers": f"{said.first}:{said.end}" if said.first < said.end else None,
        "layers_of_model": said.layers,
        "ms_per_layer_row": said.row_us / 1000,
        "sessions_max": said.sessions_max,
    }


def _session(session: SessionStatistics) -> dict[str, Any]:
    return {
        "session": session.session.hex(),
        "with": [session.requester],
        "layers": f"{session.first}:{session.end}",
        "positions": session.positions,
        "rows": session.rows,
        "age_s": round(session.age_s, 1),
        "idle_s": round(session.idle_s, 1),
    }
