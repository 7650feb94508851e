"""Swarms too large to send messages: peers decide as real ones do, in steps, from samples of all.

Placement, routing and standing are the functions that a real peer calls. Gossip is left out: in
each step a few samples are drawn of all advertisements, as many peers as a real one keeps, and each
peer that decides in that step knows one of them.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from attrs import evolve

from p2pinfer.core.advertisement import ADVERTISEMENTS_MAX, State
from p2pinfer.core.layer_range import LayerRange
from peers.serving.server import WATCH_S
from scheduler.offer_table import Experience, OfferTable
from scheduler.placement import JOIN_CHECK_S, choose
from sim.scale_askers import Askers
from sim.scale_swarm import draw_swarm

PEERS_MIN, PEERS_MAX = 10, 1_000_000
LAYERS_MIN = 8
MINUTES_MIN = 4.0
"""Half of it for joining, half for the recovery from a loss."""

STEP_S = 1.0
"""Peers that decide within a step know the state at its beginning: news is at most this old."""

SAMPLES = 4
"""Drawn in each step; peers that know the same sample differ only in themselves."""

LOAD_S = 10.0
"""To fetch and load a range."""

LOST_SHARE = 0.1
"""Share of peers that vanish at once, halfway."""

QUIET_SHARE = 0.01
"""A swarm has settled when no more than this share of its peers begins to move in a minute."""


@dataclass(frozen=True)
class ScaleLook:
    """The swarm at one moment."""

    at_s: float
    serving: int
    least_holders: int
    balance: float
    """The rate of the weakest layer, in parts of the mean."""
    moves: int
    """Moves of peers that already served something, since the start."""


class Scale:
    """One run."""

    def __init__(self, peers: int, layers: int, seed: int) -> None:
        self._chance = random.Random(seed)  # noqa: S311 -- the same run for the same seed
        self.swarm = draw_swarm(peers, layers, self._chance)
        self.moves = np.zeros(peers, np.int64)
        self.decisions, self.deciding_s = 0, 0.0
        self.looks: list[ScaleLook] = []
        self.askers = Askers(self.swarm, self._chance)

    def run(self, minutes: float, on_share: Callable[[float], None]) -> None:
        """Let all peers join and settle; halfway, let some vanish."""
        steps = round(60 * minutes / STEP_S)
        for step in range(steps):
            now_s = step * STEP_S
            if step == steps // 2:
                self._lose()
            self._step(now_s)
            self._look(now_s + STEP_S)
            on_share((step + 1) / steps)

    def _lose(self) -> None:
        swarm = self.swarm
        count = len(swarm.said)
        for peer in self._chance.sample(range(count), round(LOST_SHARE * count)):
            swarm.said[peer] = evolve(swarm.said[peer], state=State.LEFT, first=0, end=0)
            swarm.due_s[peer] = np.inf
            swarm.loading.pop(peer, None)
        if not swarm.rates()[1].all():  # every peer watches for missing layers
            staying = np.isfinite(swarm.due_s)
            swarm.due_s[staying] = np.minimum(swarm.due_s[staying], 0.0)

    def _step(self, now_s: float) -> None:
        views = self._views()
        self.askers.step(now_s, STEP_S, views[0])
        for peer, (until_s, layers) in [*self.swarm.loading.items()]:
            if until_s <= now_s:
                del self.swarm.loading[peer]
                self._say(peer, State.SERVING, layers)
        due = np.flatnonzero(self.swarm.due_s < now_s + STEP_S)
        started_s = time.perf_counter()
        for peer in due.tolist():
            if peer not in self.swarm.loading:
                self._decide(peer, max(now_s, float(self.swarm.due_s[peer])), views)
        self.deciding_s += time.perf_counter() - started_s
        self.decisions += len(due)

    def _views(self) -> list[OfferTable]:
        """Draw what peers know of all others present."""
        here = [a for a in self.swarm.said if a.state is not State.LEFT and a.end > a.first]
        count = min(len(here), ADVERTISEMENTS_MAX)
        return [OfferTable.of(self._chance.sample(here, count)) for _ in range(SAMPLES)]

    def _decide(self, peer: int, now_s: float, views: list[OfferTable]) -> None:
        """Let one peer decide, as in ``peers.serving.server``."""
        swarm, own = self.swarm, self.swarm.said[peer]
        view = views[peer % SAMPLES]
        bounds = LayerRange(swarm.lo, swarm.hi)
        seen = Experience(is_sample=len(view) == ADVERTISEMENTS_MAX)
        choice = choose(view, own, bounds, now_s=now_s, chance=self._chance.random(), seen=seen)
        wait_s = choice.check_again_s
        if own.state is State.JOINING:
            if choice.moves:
                self._say(peer, State.JOINING, choice.layers)
                wait_s = JOIN_CHECK_S * self._chance.uniform(0.5, 1.0)
            else:
                swarm.loading[peer] = (now_s + LOAD_S, choice.layers)
                wait_s = LOAD_S
        elif choice.moves:
            self.moves[peer] += 1
            swarm.loading[peer] = (now_s + LOAD_S, choice.layers)
            held = own.end - own.first + len(choice.layers)
            if held > own.layers_max:  # its old range must go first
                self._say(peer, State.JOINING, choice.layers)
            wait_s = max(LOAD_S, wait_s)
        swarm.due_s[peer] = now_s + max(wait_s, WATCH_S)

    def _say(self, peer: int, state: State, layers: LayerRange) -> None:
        own = self.swarm.said[peer]
        self.swarm.said[peer] = evolve(
            own, state=state, first=layers.first, end=layers.end, sequence=own.sequence + 1
        )

    def _look(self, at_s: float) -> None:
        rate, holders = self.swarm.rates()
        serving = sum(a.state is State.SERVING for a in self.swarm.said)
        balance = float(rate.min() / rate.mean()) if rate.any() else 0.0
        moves = int(self.moves.sum())
        self.looks.append(ScaleLook(at_s, serving, int(holders.min()), balance, moves))


def scale(
    peers: int, layers: int, minutes: float, seed: int, on_share: Callable[[float], None]
) -> dict[str, Any]:
    """Run one, and return what ``p2pinfer sim scale`` prints; ``on_share`` gets the share done."""
    started_s = time.perf_counter()
    run = Scale(peers, layers, seed)
    run.run(minutes, on_share)
    lost_s = 60 * minutes / 2
    before = [look for look in run.looks if look.at_s <= lost_s]
    after = [look for look in run.looks if look.at_s > lost_s]
    return {
        "peers": peers,
        "layers": layers,
        "seed": seed,
        "virtual_s": 60 * minutes,
        "wall_s": round(time.perf_counter() - started_s, 1),
        "decisions": run.decisions,
        "ms_per_decision": round(1000 * run.deciding_s / max(1, run.decisions), 3),
        "covered_after_s": next((look.at_s for look in before if look.least_holders), None),
        "joined": _phase(before, peers),
        "lost_share": LOST_SHARE,
        "after_loss": _phase(after, peers),
        "moves_per_peer": {
            "mean": round(float(run.moves.mean()), 3),
            "most": int(run.moves.max()),
        },
        "routes": run.askers.report(),
    }


def _phase(looks: list[ScaleLook], peers: int) -> dict[str, Any]:
    """Return how a stretch of time ended, and after how long it had settled."""
    return {
        "balance": round(looks[-1].balance, 3),
        "least_holders": looks[-1].least_holders,
        "least_holders_at_worst": min(look.least_holders for look in looks),
        "moves": looks[-1].moves - looks[0].moves,
        "settled_after_s": _settled_after_s(looks, peers),
    }


def _settled_after_s(looks: list[ScaleLook], peers: int) -> float | None:
    """Return from when on hardly any peer moved; None if that is not certain for a minute."""
    settled_s = looks[0].at_s
    for earlier, later in zip(looks, looks[round(60 / STEP_S) :], strict=False):
        if later.moves - earlier.moves > QUIET_SHARE * peers:
            settled_s = later.at_s
    if looks[-1].at_s - settled_s < 60:
        return None
    return round(settled_s - looks[0].at_s, 1)
