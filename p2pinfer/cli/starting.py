"""Starting a local swarm, with progress for the person who waits."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from p2pinfer.cli.terminal import count, doing, say
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.engine.gguf.slice_plan import SlicePlan
from p2pinfer.engine.gguf.slicing import plan_first_end, plan_last_end, plan_stage
from p2pinfer.engine.gguf.writer import NewTensor
from p2pinfer.engine.store.assemble import PartsModel
from p2pinfer.engine.store.disk import size_text
from p2pinfer.node.loading_steps import Step, ignore
from p2pinfer.node.local_swarm import LocalPeer, local_swarm, store_of
from p2pinfer.node.requester import Machine
from p2pinfer.places import data_dir

Ranges = Sequence[LayerRange]


@asynccontextmanager
async def starting(
    model: PartsModel,
    ranges: Ranges,
    machine: Machine,
    homes: Path | None = None,
    on_step: Step = ignore,
    on_ready: Callable[[], None] = lambda: None,
) -> AsyncIterator[list[LocalPeer]]:
    """Start a local swarm; print the disk space that it takes, and what its peers are doing.

    Args as of ``local_swarm``; ``on_step`` and ``on_ready`` get what is printed, too.
    """
    text = f"Starting {count(len(ranges), 'peer')} for {model.info.name} …"
    if taken := disk_bytes(model, ranges, homes):
        where = data_dir().parent if homes else model.cache
        say(f"storing each peer's layers, {size_text(taken)} of disk in {where}, once")

    def ready(peer: LocalPeer) -> None:
        on_ready()
        say(f"peer …{peer.peer[-6:]} serves layers {peer.layers} in process {peer.process.pid}")

    async with doing(text) as done:

        def both(text: str) -> None:
            done.step(text)
            on_step(text)

        both(text)
        async with local_swarm(
            model, ranges, machine=machine, homes=homes, on_ready=ready, on_step=both
        ) as running:
            done()
            yield running


def disk_bytes(model: PartsModel, ranges: Ranges, homes: Path | None) -> int:
    """Return how many bytes of disk the peers will take: parts that they fetch, and slices.

    The slices include this machine's own two ends; headers are not counted.
    """
    manifest, header, keep = model.manifest, model.header, ranges[0].first
    plans = (plan_first_end(header, keep), plan_last_end(header, keep))
    taken = sum(
        _bytes(plan)
        for plan, path in zip(plans, model.end_paths(keep), strict=True)
        if not path.exists()
    )
    for index, layers in enumerate(ranges):
        own = homes / str(index) if homes and index else None
        names = manifest.needed(layers.first, layers.end)
        if own:
            store = store_of(own)
            taken += sum(manifest.part(n).size for n in names if not store.held(manifest.part(n)))
        kept = replace(model, cache=own / "cache") if own else model
        if not kept.stage_path(layers.first, layers.end).exists():
            taken += _bytes(plan_stage(header, layers.first, layers.end))
    return taken


def _bytes(plan: SlicePlan) -> int:
    return sum(NewTensor(each.name, each.shape, each.type, None).nbytes for each in plan.tensors)
