"""Fraud proofs that were made over a path: told to others later, and by somebody else.

A proof that goes out as soon as an answer was checked says when that was, and who brings it is who
asked. So each waits for a time of its own, drawn from an exponential distribution that is cut
off at `HELD_S_MAX`, and is then told over a path that is opened for it alone, under an id that
nobody has met. It lies on disk until a peer has heard of it: one that waits when this machine stops
asking is told, after another such time, when it asks over a path the next time.

What this rests on: a relay, or a peer, that sees proofs come in cannot tell from their times which
of the sessions of the last minutes they are about, if there were several. What it does not give: a
proof names its session to the stage that it convicts, and the id that asked in it to all.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from math import exp, log
from pathlib import Path
from random import Random, SystemRandom
from typing import Final

import trio

from p2pinfer.core.errors import P2pinferError
from p2pinfer.core.sections import BadFile
from p2pinfer.node.atomic_file import replace_text
from p2pinfer.node.fraud_files import hidden_proofs, read_proof
from p2pinfer.node.known_peers import KnownPeers
from p2pinfer.node.swarm_connection import open_swarm_connection
from peers.audits.frauds import SPREAD, Frauds, Proof
from peers.parts.protocol import Run, in_thread
from transports.base import Reach

_log = logging.getLogger("p2pinfer.frauds")

HELD_S_MEAN: Final = 120.0
"""Of the distribution before it is cut off. Longer hides a proof among more sessions, and lets the
cheat work for longer: here it is shut out at once, elsewhere when it is told."""

HELD_S_MAX: Final = 900.0
"""A swarm learns of a cheat within a quarter of an hour of somebody who stays that long; 0.06 % of
all would wait for longer."""

POST_S_MAX: Final = 120.0
"""To open a path and tell a few peers: a proof has 6 MiB at most."""

WAITING_MAX: Final = 16
"""Proofs that wait at once; beyond, new ones are told to nobody, and shun the cheat here alone."""

WAITS_S_MAX: Final = 28 * 86_400.0
"""Then nobody needs it: the peers of a month ago have left, or have been convicted by others."""

MARK: Final = ".held"

Post = Callable[[Proof, bytes], Awaitable[bool]]
"""Tells others of a proof; returns whether somebody has heard of it."""


def _now() -> float:
    return time.time_ns() / 1e9


def held_s(chance: Random) -> float:
    """Draw for how many seconds something is held back: exponential, cut off at `HELD_S_MAX`."""
    within = 1 - exp(-HELD_S_MAX / HELD_S_MEAN)  # the share that is not cut off
    return -HELD_S_MEAN * log(1 - within * chance.random())


class HeldProofs:
    """Proofs that wait until they are told; each has a mark beside its file.

    Args:
        folder: where their files lie.
        network: the name of that in which they are told, written into the mark.
        post: tells others.
        chance: draws how long each waits.
        unix_s: the wall-clock time, in seconds: marks outlive the process.
        run: runs slow work, so that nothing else waits for it.
    """

    def __init__(
        self,
        folder: Path,
        network: str,
        post: Post,
        chance: Random,
        unix_s: Callable[[], float] = _now,
        run: Run = in_thread,
    ) -> None:
        self._folder, self._network, self._post = folder, network, post
        self._chance, self._unix_s, self._run = chance, unix_s, run
        self._send, self._receive = trio.open_memory_channel[Path](WAITING_MAX)
        self._posting = trio.Lock()

    def hold(self, path: Path) -> None:
        """Have a proof told to others later; raises OSError if that cannot be written down."""
        if len(self._marks()) >= WAITING_MAX:
            _log.info("too many proofs wait to be told")
            return
        mark = path.with_name(path.name + MARK)
        replace_text(mark, self._network)
        try:
            self._send.send_nowait(mark)
        except trio.WouldBlock:
            _log.info("%s is told to others in another run", path)

    async def run(self) -> None:
        """Tell others of each proof when its time has come, for ever; those of former runs, too."""
        async with trio.open_nursery() as nursery:
            for mark in self._marks():
                nursery.start_soon(self._tell_later, mark)
            async for mark in self._receive:
                nursery.start_soon(self._tell_later, mark)

    def _marks(self) -> list[Path]:
        """Return the marks of this network; those that are stale are removed."""
        found = list[Path]()
        for mark in sorted(self._folder.glob(f"*{MARK}")):
            try:
                if self._unix_s() - mark.stat().st_mtime > WAITS_S_MAX:
                    mark.unlink()
                elif mark.read_text() == self._network:
                    found.append(mark)
            except (OSError, UnicodeDecodeError) as error:  # another process's doing, or the disk's
                _log.info("ignoring %s: %s", mark, error)
        return found[:WAITING_MAX]

    async def _tell_later(self, mark: Path) -> None:
        while True:
            await trio.sleep(held_s(self._chance))
            async with self._posting:
                found = await self._run(_load, mark)
                if found is None or await self._post(*found):
                    await self._run(_forget, mark)
                    return


def _load(mark: Path) -> tuple[Proof, bytes] | None:
    """Return the proof of a mark; None if another process has told it, or it cannot be read."""
    try:
        return read_proof(mark.with_suffix("")) if mark.exists() else None
    except (OSError, BadFile) as error:
        _log.info("not told, and forgotten: %s", error)
        return None


def _forget(mark: Path) -> None:
    with suppress(OSError):  # then it is told once more, in another run
        mark.unlink(missing_ok=True)


def holding(
    nursery: trio.Nursery, bootstrap: Sequence[str], network: str | Reach, via: int
) -> Callable[[Path], None] | None:
    """Return what holds a proof's file back, and tells others of it later; None without a path.

    Args:
        nursery: waits until it is told.
        bootstrap: addresses for a first relay, if none is kept.
        network: which swarm it is.
        via: how many relays it goes through.
    """
    if not via:
        return None
    tell, name = partial(post, bootstrap, network, via), KnownPeers(network).name
    held = HeldProofs(hidden_proofs(), name, tell, SystemRandom())
    nursery.start_soon(held.run)
    return held.hold


async def post(
    bootstrap: Sequence[str], network: str | Reach, via: int, proof: Proof, data: bytes
) -> bool:
    """Tell some peers of a proof, over a path and under an id of its own.

    Args:
        bootstrap: addresses for a first relay, if none is kept.
        network: which swarm it is.
        via: how many relays.
        proof: what is told.
        data: its file.

    Returns:
        Whether a peer has heard of it. A failure is none of the caller's: it tries again.
    """
    model, accused = proof.case().model, proof.accused
    with trio.move_on_after(POST_S_MAX):
        try:
            async with open_swarm_connection(bootstrap, network, via=via) as swarm:
                await swarm.enter(model)
                swarm.transport.shut_out(accused)
                swarm.directory.shut_out(accused)
                frauds = Frauds(
                    swarm.transport,
                    model,
                    swarm.identity.sign,
                    lambda: swarm.directory.serving(model),
                    lambda _: (),
                    swarm.chance,
                    lambda *_: None,
                )
                frauds.add(proof, data)
                return await frauds.tell(SPREAD) > 0
        except P2pinferError as error:
            _log.info("a proof is not told yet: %s", error)
    return False
