"""Fraud proofs on this machine: kept as files, and acted on by every node that runs here.

What a node learned of while it asked over a path lies in a folder of its own. All nodes shun those
peers, and none tells others why: who is the first to know a proof is known to have been there.
"""

import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from p2pinfer.core.double_statement import NO_MODEL
from p2pinfer.core.fraud import FILE_BYTES_MAX
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.sections import BadFile
from p2pinfer.node.swarm_connection import SwarmConnection
from p2pinfer.places import data_dir
from peers.audits.frauds import Frauds, Judges, Proof, read
from peers.audits.steps import StepsJudge

_log = logging.getLogger("p2pinfer.frauds")

FILES_MAX = 64
"""The oldest are deleted first. 400 MiB at worst, 5 MB for the default model."""

FINISH_S_MAX = 5.0
"""For sending proofs to others before this node leaves."""


class ProofFiles:
    """A directory of proofs that held when they arrived; a node trusts them when it starts."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def keep(self, proof: Proof, data: bytes) -> Path:
        """Write a proof, unless it exists, and return its file.

        Raises:
            OSError: it cannot be written.
        """
        path = self._path / f"{proof.accused[-12:]}-{proof.case().digest.hex()[:12]}.proof"
        if not path.exists():
            self._path.mkdir(parents=True, exist_ok=True)
            new = path.with_suffix(f".{os.getpid()}")
            new.write_bytes(data)
            new.rename(path)
            for old in self._newest()[FILES_MAX:]:
                old.unlink(missing_ok=True)
        return path

    def load(self, model: ModelId) -> Iterator[tuple[Proof, bytes]]:
        """Yield the proofs about a model's peers and of no model, the oldest first."""
        for path in reversed(self._newest()):
            try:
                proof, data = read_proof(path)
            except (OSError, BadFile) as error:
                _log.warning("ignoring %s: %s", path, error)
                continue
            if proof.case().model in (model, NO_MODEL):
                yield proof, data

    def _newest(self) -> list[Path]:
        found = [(path.stat().st_mtime_ns, path) for path in self._path.glob("*.proof")]
        return [path for _, path in sorted(found, reverse=True)]


def read_proof(path: Path) -> tuple[Proof, bytes]:
    """Return a proof, and its file's bytes; raises OSError or BadFile."""
    with path.open("rb") as file:
        data = file.read(FILE_BYTES_MAX + 1)
    return read(data), data


def hidden_proofs() -> Path:
    """Return the folder of what was learned over paths."""
    return data_dir() / "proofs" / "hidden"


def open_frauds(
    swarm: SwarmConnection,
    model: ModelId,
    sign: Callable[[bytes], bytes],
    judges: Judges,
    on_proven: Callable[[PeerId], None] = lambda _: None,
    steps: StepsJudge | None = None,
    hold: Callable[[Path], None] | None = None,
) -> Frauds:
    """Return a node's record of proven cheats, which it shuts out from then on.

    Args:
        swarm: others.
        model: whose proofs it can judge.
        sign: as this node.
        judges: finds peers that can judge.
        on_proven: called with each proven cheat.
        steps: judges openings.
        hold: called with the file of each proof that this node made itself: it tells nobody of any,
            since that would show when they were made, and where. None: it tells others at once.
    """
    transport, directory = swarm.transport, swarm.directory
    told, hidden = ProofFiles(hidden_proofs().parent), ProofFiles(hidden_proofs())
    files = told

    def act(proof: Proof, data: bytes) -> None:
        transport.shut_out(proof.accused)
        directory.shut_out(proof.accused)
        on_proven(proof.accused)
        try:
            path = files.keep(proof, data)
            if hold and proof.accused in frauds.accused_here:
                hold(path)
        except OSError as error:
            _log.warning("cannot save the proof against %s: %s", proof.accused, error)
        else:
            _log.warning("p2pinfer verify %s shows how %s cheated", path, proof.accused)

    frauds = Frauds(
        transport,
        model,
        sign,
        lambda: directory.holding(model),
        judges,
        swarm.chance,
        act,
        transport.shut_out,
        steps=steps,
        tells=hold is None,
    )
    for proof, data in told.load(model):
        frauds.add(proof, data)
    files = hidden
    for proof, data in hidden.load(model):
        frauds.add(proof, data, tells=False)
    files = hidden if hold else told
    return frauds


@asynccontextmanager
async def sharing(frauds: Frauds | None, nursery: trio.Nursery) -> AsyncIterator[None]:
    """Exchange proofs with others during the block, and send new ones at its end."""
    if frauds is None:
        yield
        return
    nursery.start_soon(frauds.run)
    try:
        yield
    finally:
        with trio.move_on_after(FINISH_S_MAX, shield=True):
            await frauds.finish()
