"""What this machine thinks of peers, from one run to the next: a liar does not gain by that one.

A small file that several processes share: each puts in what it has seen, the newest of each peer
stands. Standings count in seconds of a process's own clock, the file in everybody's.
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
"""How often a process that goes on for long writes down what it has seen."""


def load_standings(path: Path | None = None) -> Standings:
    """Return what was thought of peers when it was last written down; nothing if nothing was."""
    ahead_s = time.time_ns() / 1e9 - trio.current_time()
    found = _read(path or _place())
    known = {peer: _standing(value, at_s - ahead_s) for peer, (value, at_s) in found.items()}
    return Standings(known)


async def keep_standings(standings: Standings, path: Path | None = None) -> None:
    """Write down what is thought of peers, now and then, and when cancelled."""
    place = path or _place()
    try:
        while True:
            await trio.sleep(KEEP_S)
            _keep(standings, place)
    finally:
        _keep(standings, place)


def _standing(value: float, at_s: float) -> Standing:
    # Nobody has seen a peer in the future: a clock was set back.
    return Standing(value, min(at_s, trio.current_time()), cheat=value == 0)


def _keep(standings: Standings, path: Path) -> None:
    """Put what was seen into the file; a file that cannot be written is a pity, and no more."""
    ahead_s = time.time_ns() / 1e9 - trio.current_time()
    own = {peer: (each.value, each.at_s + ahead_s) for peer, each in standings.known.items()}
    found = _read(path)
    if all(found.get(peer, (0.0, 0.0))[1] >= at_s for peer, (_, at_s) in own.items()):
        return
    newest = sorted([*found.items(), *own.items()], key=lambda each: each[1][1])
    try:
        replace_text(path, json.dumps(dict(newest[-2 * PEERS_MAX :])))
    except OSError as error:
        _log.info("what was seen of peers is forgotten: %s", error)


def _read(path: Path) -> Mapping[PeerId, tuple[float, float]]:
    """Return each peer's standing, and the time on everybody's clock as of which it is that."""
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
