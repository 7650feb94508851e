"""Peers' standings, kept between runs, so that a cheat gains nothing from a restart.

Several processes share one small file: each adds what it has seen, and the newest standing of each
peer counts. In a process, times are on its own clock; in the file, in seconds since 1970.
"""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path

import trio

from p2pinfer.core.ids import PeerId
from p2pinfer.node.atomic_file import replace_text
from p2pinfer.places import state_dir
from scheduler.standing import PEERS_MAX, Standing, Standings

_log = logging.getLogger("p2pinfer.standings")

KEEP_S = 60.0
"""How often a long-running process saves its standings."""


def load_standings(path: Path | None = None) -> Standings:
    """Return the standings in the file; none if there is no usable file."""
    ahead_s = time.time_ns() / 1e9 - trio.current_time()
    found = _read(path or _place())
    known = {peer: _standing(value, at_s - ahead_s) for peer, (value, at_s) in found.items()}
    return Standings(known)


async def keep_standings(standings: Standings, path: Path | None = None) -> None:
    """Save the standings regularly, and when cancelled."""
    place = path or _place()
    try:
        while True:
            await trio.sleep(KEEP_S)
            _keep(standings, place)
    finally:
        _keep(standings, place)


def _standing(value: float, at_s: float) -> Standing:
    # A time in the future means that the clock was set back.
    return Standing(value, min(at_s, trio.current_time()), cheat=value == 0)


def _keep(standings: Standings, path: Path) -> None:
    """Add the standings to the file; if it cannot be written, only a log line says so."""
    ahead_s = time.time_ns() / 1e9 - trio.current_time()
    own = {peer: (each.value, each.at_s + ahead_s) for peer, each in standings.known.items()}
    found = _read(path)
    if all(found.get(peer, (0.0, 0.0))[1] >= at_s for peer, (_, at_s) in own.items()):
        return
    newest = sorted([*found.items(), *own.items()], key=lambda each: each[1][1])
    try:
        replace_text(path, json.dumps(dict(newest[-2 * PEERS_MAX :])))
    except OSError as error:
        _log.info("cannot save peers' standings: %s", error)


def _read(path: Path) -> Mapping[PeerId, tuple[float, float]]:
    """Return each peer's standing, and its time in seconds since 1970."""
    try:
        found = json.loads(path.read_text())
        return {PeerId(peer): (_share(value), float(at)) for peer, (value, at) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _share(value: object) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError("a standing is from 0 to 1")
    return float(value)


def _place() -> Path:
    return state_dir() / "standings.json"
