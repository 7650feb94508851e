"""What a peer's memory is planned for: its layers' weights, and the KV cells of their sessions."""

from dataclasses import replace

from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.manifest import Manifest
from p2pinfer.engine.gguf.architectures import layers_at_once_max, layers_of_zeros_max
from p2pinfer.engine.llama.memory import (
    WORKER_BYTES,
    aside_sessions,
    budget_bytes,
    mib,
    sessions_bytes,
)
from p2pinfer.engine.store.assemble import PartsModel
from p2pinfer.node.requester import Machine, check_keep, for_model, with_long_sessions
from scheduler.memory_shares import Appetite

LONG_COSTS = 5
"""One in five of a peer's layers is given for a session as long as agents need: a 70B model's peer
then holds 6 layers of 0.5 GB where it would hold 7."""


def inner_layers(model: Manifest, keep: int) -> LayerRange:
    """Return the layers that a swarm serves with ends of ``keep`` layers; raises UserError."""
    check_keep(model, keep)
    return LayerRange(keep, model.layers - keep)


def layers_max(model: PartsModel, machine: Machine, memory_bytes: int | None, keep: int = 1) -> int:
    """Return how many layers of a model it may choose, with their sessions, in the memory."""
    room = budget_bytes(memory_bytes, machine.gpu) - WORKER_BYTES
    held = room // layer_bytes(model, machine) - layers_of_zeros_max(model.info)
    return max(0, min(held, _layers_of_use(model, keep)))


def appetite(model: PartsModel, machine: Machine, keep: int) -> Appetite:
    """Return what a model can do with memory: from one layer to all, with long sessions."""
    longest = replace(machine, long_sessions=machine.sessions)
    zeros = layers_of_zeros_max(model.info)
    least = (1 + zeros) * layer_bytes(model, machine)
    most = (_layers_of_use(model, keep) + zeros) * layer_bytes(model, longest)
    return Appetite(WORKER_BYTES + least, WORKER_BYTES + most)


def _layers_of_use(model: PartsModel, keep: int) -> int:
    inner = len(inner_layers(model.manifest, keep))
    return min(inner, layers_at_once_max(model.header, model.info))


def layer_bytes(model: PartsModel, machine: Machine) -> int:
    """Return the memory of the largest layer: its weights, and the cells of all sessions."""
    manifest = model.manifest
    weights = max(map(manifest.layer_size, range(manifest.layers)))
    held = machine.sessions + aside_sessions(machine.sessions)
    usual = sessions_bytes(model.header, 1, held, machine.context)
    return weights + usual + sessions_bytes(model.header, 1, 1, machine.long_cells)


def for_stage(
    model: PartsModel,
    machine: Machine,
    memory_bytes: int | None,
    layers: int,
    keep: int = 1,
    *,
    is_fixed: bool,
) -> Machine:
    """Decide how long the longest sessions of a peer are that could serve that many layers.

    The first one may cost a fifth of the layers that the memory would hold, unless a person named
    them, or they are all: nobody else may be there to serve what is left out. Further ones cost
    none.
    """
    room = budget_bytes(memory_bytes, machine.gpu) - WORKER_BYTES
    is_fixed = is_fixed or layers == len(inner_layers(model.manifest, keep))

    def fits(count: int, length: int) -> bool:
        kept = layers if is_fixed or count > 1 else -(-layers * (LONG_COSTS - 1) // LONG_COSTS)
        long = replace(machine, long_context=length, long_sessions=count)
        return (kept + layers_of_zeros_max(model.info)) * layer_bytes(model, long) <= room

    return with_long_sessions(machine, fits)


def least_bytes(model: PartsModel, machine: Machine) -> int:
    """Return the memory that serving one layer takes."""
    layers = 1 + layers_of_zeros_max(model.info)
    return WORKER_BYTES + layers * layer_bytes(model, for_model(machine, model))


def too_small(model: PartsModel, machine: Machine, memory_bytes: int | None) -> str:
    """Say that not even one layer fits, and what to do."""
    least = least_bytes(model, machine)
    what = "--memory gives" if memory_bytes else f"{machine.gpu or 'this machine'} can spare"
    return (
        f"one layer of {model.info.name} with {machine.sessions} sessions of"
        f" {machine.context:,} positions takes {mib(least)}, but {what}"
        f" only {mib(budget_bytes(memory_bytes, machine.gpu))}: choose a smaller --context, fewer"
        " --sessions, or more --memory"
    )
