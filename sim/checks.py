"""Invariants of every scenario, checked from outside during a run and at its end."""

from collections.abc import Callable

import trio

from p2pinfer.core.advertisement import ADVERTISEMENTS_MAX
from p2pinfer.core.ledger import fold
from peers.discovery.directory import Directory
from peers.discovery.view import lasts_s
from sim.record import AskedQuestion, RunRecord, Sample
from sim.scenario import Scenario
from sim.world import MODEL, World

STALE_S = 15.0
"""Beyond the periods that a peer may miss: its last advertisement was in transit when it ended."""

DIRECTORIES_PER_LOOK = 10
"""Checked at each sample, in rotation."""

SETTLE_S_MAX = 75.0
"""For newcomers to choose, fetch and serve layers; leaving peers hand over for up to 2 minutes."""

FREE_S_MAX = 60.0
"""For cells to become free once all questions are over: unattended sessions wait for less."""


class Watch:
    """Samples the world, and checks what can be checked at any moment."""

    def __init__(self, world: World, interval_s: float, on_look: Callable[[], None]) -> None:
        self._world, self._interval_s, self._on_look = world, interval_s, on_look
        self._turn = 0
        self.covered = self.looks = 0

    async def run(self, from_s: float) -> None:
        """Sample and check for ever; coverage counts from a given moment on."""
        while True:
            self.look(is_counted=trio.current_time() >= from_s)
            self._on_look()
            await trio.sleep(self._interval_s)

    def look(self, *, is_counted: bool) -> None:
        """Take one sample and check it."""
        world, now = self._world, trio.current_time()
        serving = world.serving()
        least = world.least_holders()
        if is_counted:
            self.looks += 1
            self.covered += least > 0
        world.record.samples.append(
            Sample(
                now,
                len(world.peers),
                least,
                sum(engine.sessions for p in world.peers.values() for engine in p.engines),
                world.record.events["token"],
                {peer.machine.number: layers for peer, layers in serving},
            )
        )
        directories = [p.directory for p in world.peers.values() if p.directory]
        directories += [requester.directory for requester in world.requesters]
        for _ in range(min(DIRECTORIES_PER_LOOK, len(directories))):
            self._turn = (self._turn + 1) % len(directories)
            _check_directory(world, directories[self._turn])


def _check_directory(world: World, directory: Directory) -> None:
    """No peer still lists one that has been gone for long, nor more peers than the limit."""
    now, known = trio.current_time(), directory.holding(MODEL)
    for advertisement in [a for a in known if a.peer not in world.peers]:
        gone_s = now - world.gone_s.get(advertisement.peer, now)
        stale_s = lasts_s(advertisement.period_ms / 1000) + STALE_S
        if gone_s > stale_s:
            text = f"a peer that ended {gone_s:.0f} s ago is still listed"
            world.record.violation("stale", now, text)
    if len(known) > ADVERTISEMENTS_MAX:
        world.record.violation("bounds", now, f"a peer keeps {len(known)} advertisements")


async def check_free(world: World) -> None:
    """After the last question, all cells held must be given back after a while."""
    held = {
        peer: cells
        for peer in world.peers.values()
        if (cells := [cells for engine in peer.engines for cells in engine.cells])
    }
    await trio.sleep(FREE_S_MAX)
    now = trio.current_time()
    for peer, before in held.items():
        kept = sum(cells in engine.cells for cells in before for engine in peer.engines)
        if kept and peer.id in world.peers:
            text = f"peer {peer.machine.number} holds cells of {kept} unused sessions"
            world.record.violation("cells", now, text)
    for requester in world.requesters:
        if requester.ends.sessions:
            text = f"requester {requester.number} holds cells of {requester.ends.sessions} sessions"
            world.record.violation("cells", now, text)


def check_holes(world: World) -> None:
    """After the calm every layer is served, if the peers present could hold them all."""
    staying = [peer for peer in world.peers.values() if not peer.leaving.is_set()]
    room = sum(peer.machine.layers for peer in staying if world.is_reached(peer))
    if any(trio.current_time() - peer.joined_s < SETTLE_S_MAX for peer in staying):
        return
    if room >= len(world.bounds) and not world.is_covered():
        held = sorted(peer.held for peer in staying if peer.held and world.is_reached(peer))
        text = f"peers with room for {room} layers leave some of {world.bounds} alone: "
        text += ", ".join(map(str, held))
        world.record.violation("hole", trio.current_time(), text)


def check_ledger(world: World) -> None:
    """All work that a requester recorded as used is also recorded by the peer that did it."""
    served = fold(world.served)
    for key, used in fold(world.used).items():
        found = served.get(key)
        if found is None or found.rows < used.rows:
            text = f"{used.rows} rows of {used.first}:{used.end} were used, and "
            text += f"{found.rows} served" if found else "no peer recorded them"
            world.record.violation("ledger", trio.current_time(), text)


def check_last(question: AskedQuestion, world: World) -> None:
    """A question in the calm is answered if every layer is served."""
    if question.outcome not in ("answered", "wrong"):
        text = f"requester {question.requester} got no answer ({question.outcome}) in the calm"
        world.record.violation("liveness", question.at_s, f"{text}: {question.why}")


def check_expected(
    scenario: Scenario, record: RunRecord, covered: float, undialable: float
) -> None:
    """The scenario's own expectations are met."""
    expect, now = scenario.expect, trio.current_time()
    asked = [question for question in record.questions if not question.is_last]
    answered = sum(question.outcome == "answered" for question in asked)
    if asked and answered / len(asked) < expect.answered:
        text = f"{answered} of {len(asked)} questions were answered; {expect.answered:.0%} must be"
        record.violation("answered", now, text)
    if covered < expect.covered:
        text = f"all layers were served {covered:.1%} of the time; {expect.covered:.0%} must be"
        record.violation("covered", now, text)
    if asked and undialable < expect.undialable:
        text = f"peers that cannot be dialled computed {undialable:.1%} of the layer-rows;"
        record.violation("undialable", now, f"{text} {expect.undialable:.0%} must be theirs")
