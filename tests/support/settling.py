"""A swarm whose peers choose their layers, one by one or all at once, until it settles."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from attrs import evolve

from p2pinfer.core.advertisement import Advertisement, State
from p2pinfer.core.ids import PeerId
from p2pinfer.core.layer_range import LayerRange
from scheduler.coverage_value import STAGE_LAYERS
from scheduler.offer_table import Floats
from scheduler.placement import TURN_S, Choice, choose

Swarm = dict[PeerId, Advertisement]


def rates(swarm: Iterable[Advertisement], layers: LayerRange) -> Floats:
    """Return how many rows a second each layer gets through."""
    total = np.zeros(len(layers))
    for a in swarm:
        if a.first < a.end:
            work = a.end - a.first + STAGE_LAYERS
            total[a.first - layers.first : a.end - layers.first] += 1e6 / (a.row_us * work)
    return total


@dataclass
class Game:
    """Rounds in each of which every peer decides once, in any order.

    With a ``lag`` they decide at once, each from a view up to that many rounds old, in which every
    other peer has an age of its own; without, one after another, from the present state.
    """

    swarm: Swarm
    layers: LayerRange
    random: random.Random
    lag: int | None = None
    rounds: int = 0
    moves: int = 0
    last_move: int = 0
    opened: int = 0
    """How often a layer lost its last holder while all were held, and all peers knew it."""
    whole_for: int = 0
    """For how many rounds all layers have been held."""
    history: list[Swarm] = field(default_factory=list)

    @property
    def covered(self) -> bool:
        """Whether all layers are held, or are about to be."""
        return bool((rates(self.swarm.values(), self.layers) > 0).all())

    @property
    def worst(self) -> float:
        """The rate of the weakest layer."""
        return float(rates(self.swarm.values(), self.layers).min())

    def run(self, rounds_max: int, quiet: int) -> None:
        """Play until no peer has moved for ``quiet`` rounds, or to the end."""
        while self.rounds < rounds_max and self.rounds - self.last_move < quiet:
            self.rounds += 1
            peers = list(self.swarm)
            self.random.shuffle(peers)
            if self.lag is None:
                for peer in peers:
                    self.apply({peer: self.decide(peer, self.swarm)})
            else:
                self.history = [*self.history, dict(self.swarm)][-1 - self.lag :]
                self.apply({peer: self.decide(peer, self.heard()) for peer in peers})

    def heard(self) -> Swarm:
        """Return what one peer knows of the others, each as of some time ago."""
        return {peer: self.random.choice(self.history)[peer] for peer in self.swarm}

    def decide(self, peer: PeerId, known: Swarm) -> Choice:
        """Let one decide; a turn has four rounds for each round of lag, and one without."""
        rounds_per_turn = 4 * self.lag if self.lag else 1
        now_s = (self.rounds + (0 if self.lag else 0.75)) * TURN_S / rounds_per_turn
        others = [a for a in known.values() if a.peer != peer]
        own, chance = self.swarm[peer], self.random.random()
        return choose(others, own, self.layers, now_s=now_s, chance=chance)

    def apply(self, choices: dict[PeerId, Choice]) -> None:
        """Apply these choices at once."""
        for peer, choice in choices.items():
            own = self.swarm[peer]
            settled = own.state is State.JOINING and own.first < own.end and not choice.moves
            if choice.moves or settled:
                self.last_move = self.rounds
                self.moves += choice.moves
                state = State.SERVING if settled else own.state
                first, end = choice.layers.first, choice.layers.end
                self.swarm[peer] = evolve(own, first=first, end=end, state=state)
        if self.covered:
            self.whole_for += 1
            return
        self.opened += self.whole_for > (self.lag or 0)
        self.whole_for = 0


def play(
    swarm: Sequence[Advertisement],
    layers: LayerRange,
    chance: random.Random,
    lag: int | None = None,
    *,
    rounds_max: int = 200,
) -> Game:
    """Let a swarm settle."""
    game = Game({a.peer: a for a in swarm}, layers, chance, lag)
    game.run(rounds_max, quiet=15 * (1 + (lag or 0)))
    return game
