"""How many layers of a model fit into the memory that a machine lends."""

from p2pinfer.engine.gguf.architectures import layers_at_once_max
from p2pinfer.engine.llama.memory import (
    WORKER_BYTES,
    aside_sessions,
    budget_bytes,
    mib,
    sessions_bytes,
)
from p2pinfer.engine.store.assemble import PartsModel
from p2pinfer.node.requester import Machine, for_model
from scheduler.memory_shares import Appetite


def layers_max(model: PartsModel, machine: Machine, memory_bytes: int | None) -> int:
    """Return how many layers of a model it may choose, with their sessions, in the memory."""
    room = budget_bytes(memory_bytes) - WORKER_BYTES
    return max(0, min(room // layer_bytes(model, machine), _layers_of_use(model)))


def appetite(model: PartsModel, machine: Machine) -> Appetite:
    """Return what a model can do with memory."""
    each = layer_bytes(model, machine)
    return Appetite(WORKER_BYTES + each, WORKER_BYTES + each * _layers_of_use(model))


def _layers_of_use(model: PartsModel) -> int:
    return min(model.manifest.layers - 2, layers_at_once_max(model.header, model.info))


def layer_bytes(model: PartsModel, machine: Machine) -> int:
    """Return the memory of the largest layer: its weights, and the cells of all sessions."""
    manifest = model.manifest
    weights = max(map(manifest.layer_size, range(manifest.layers)))
    held = machine.sessions + aside_sessions(machine.sessions)
    return weights + sessions_bytes(model.header, 1, held, machine.context)


def least_bytes(model: PartsModel, machine: Machine) -> int:
    """Return the memory that serving one layer takes."""
    return WORKER_BYTES + layer_bytes(model, for_model(machine, model))


def too_small(model: PartsModel, machine: Machine, memory_bytes: int | None) -> str:
    """Return the sentence for a person whose machine cannot serve a single layer."""
    least = least_bytes(model, machine)
    what = "--memory gives" if memory_bytes else "this machine can spare"
    return (
        f"one layer of {model.info.name} with {machine.sessions} sessions of"
        f" {machine.context:,} positions takes {mib(least)}, but {what}"
        f" only {mib(budget_bytes(memory_bytes))}: choose a smaller --context, fewer --sessions, or"
        " more --memory"
    )
