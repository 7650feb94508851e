"""Make a proof key: stream each layer once, fold it, and forget it.

A layer that is not here is fetched into a store of its own, which is removed once it is folded, so
that no more than one layer at a time takes up room.
"""

import logging
import secrets
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

import trio

from p2pinfer.core.errors import P2pinferError, UserError
from p2pinfer.core.ids import ModelId
from p2pinfer.core.manifest import METADATA, Manifest, layer_part
from p2pinfer.core.model_names import readable_name
from p2pinfer.engine.store.proof_keys import ProofKey, ProofKeys, begin_key, fold_part
from p2pinfer.engine.store.store import Store
from p2pinfer.node.swarm_connection import open_swarm_connection
from peers.audits.steps import StepsJudge
from peers.parts.describe import Holders, fetch_manifest
from peers.parts.fetch import fetch_parts
from peers.parts.link import Holder
from peers.parts.progress import Progress
from peers.parts.protocol import in_thread
from transports.base import Reach, Transport

Fetch = Callable[[Store, str], Awaitable[None]]
"""Fetches a part of the model into a store."""

Tell = Callable[[int, int], None]
"""Told how many layers are folded, and of how many."""


_log = logging.getLogger("p2pinfer.openings")

LOOK_S = 3600.0
"""How often the age of a key is looked at."""

NAMED_MAX = 4
"""Missing layers that are named in a sentence."""


async def make_proof_key(
    keys: ProofKeys,
    store: Store,
    manifest: Manifest,
    now_s: float,
    fetch: Fetch | None = None,
    tell: Tell = lambda *_: None,
) -> ProofKey:
    """Return a model's key, making what is missing of it.

    It may be cancelled, or the process killed, at any moment: folded layers stay.

    Args:
        keys: where it is kept.
        store: whose layers are read where they are here; the metadata part must be.
        manifest: the model's.
        now_s: Unix time.
        fetch: gets layers that are not here.
        tell: called after each layer.

    Raises:
        UnsupportedModel: the model's layers cannot be proven.
        UserError: a layer is not here and cannot be fetched, or the key cannot be written.
    """
    due = await in_thread(begin_key, keys, store, manifest, now_s)
    tell(manifest.layers - len(due), manifest.layers)
    lacking = [each for each in map(layer_part, due) if not store.held(manifest.part(each))]
    if lacking and fetch is None:
        names = ", ".join(lacking[:NAMED_MAX])
        more = f" and {len(lacking) - NAMED_MAX} more" if len(lacking) > NAMED_MAX else ""
        raise UserError(
            f"{names}{more} of {readable_name(manifest.name)} are not here: name a peer to read"
            " them from with --bootstrap ADDRESS  (p2pinfer join prints one)"
        )
    for count, layer in enumerate(due, manifest.layers - len(due) + 1):
        name = layer_part(layer)
        if fetch is None or store.held(manifest.part(name)):
            await in_thread(fold_part, keys, store, manifest, layer)
        else:
            with tempfile.TemporaryDirectory(prefix="folding-", dir=store.root) as folder:
                passing = await in_thread(Store, Path(folder))
                await fetch(passing, name)
                await in_thread(fold_part, keys, passing, manifest, layer)
        tell(count, manifest.layers)
    found = await in_thread(keys.load, manifest.id)
    assert found is not None
    return found


def judge_of(store: Store, manifest: Manifest) -> StepsJudge:
    """Return a judge of openings by what this machine has of a model's layers."""
    return StepsJudge(ProofKeys(store, secrets.token_bytes), store, manifest)


async def keep_fresh(judge: StepsJudge, store: Store, manifest: Manifest, fetch: Fetch) -> None:
    """Make a key again that a person made once, for ever: after a week, and after a rejection."""
    while True:
        now_s = time.time_ns() / 1e9
        try:
            if await in_thread(judge.keys.is_due, manifest.id, now_s):
                await make_proof_key(judge.keys, store, manifest, now_s, fetch)
                judge.take_new()
        except P2pinferError as error:
            _log.warning("the proof key is not made again: %s", error)
        with trio.move_on_after(LOOK_S):
            await judge.wait_rejection()


def fetching(transport: Transport, holders: Holders, manifest: Manifest) -> Fetch:
    """Return a fetcher of parts from a swarm that was joined; it waits for holders."""

    async def fetch(into: Store, name: str) -> None:
        await fetch_parts(transport, holders, into, manifest, [name])

    return fetch


async def make_from_swarm(
    keys: ProofKeys,
    store: Store,
    model: ModelId,
    now_s: float,
    bootstrap: Sequence[str],
    reach: Reach,
    tell: Tell,
    wait: Callable[[Progress], None],
) -> ProofKey:
    """Return a model's key, fetching what is not here: its manifest, its metadata, and layers.

    Args:
        keys: where it is kept.
        store: as for ``make_proof_key``; it may know nothing of the model yet.
        model: the model's id.
        now_s: Unix time.
        bootstrap: addresses of peers.
        reach: how to reach the swarm.
        tell: called after each layer.
        wait: called with what no peer online holds, of the manifest and the metadata.

    Raises:
        NobodyServes: no peer answers.
        BadManifest, UnsupportedModel, UserError: as ``fetch_manifest`` and ``make_proof_key``.
    """
    async with open_swarm_connection(bootstrap, reach) as swarm:
        await swarm.enter(model)
        transport = swarm.transport

        def holders() -> Iterable[Holder]:
            return swarm.directory.holding(model)

        manifest = await fetch_manifest(transport, holders, store, model, wait)
        await fetch_parts(transport, holders, store, manifest, [METADATA], wait)
        fetch = fetching(transport, holders, manifest)
        return await make_proof_key(keys, store, manifest, now_s, fetch, tell)
