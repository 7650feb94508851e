"""A model that is another one with an adapter, asked of peers that serve that one without it."""

from p2pinfer.core.ids import ModelId
from p2pinfer.core.manifest import Manifest
from p2pinfer.engine.store.store import Store


def ends_of_adapter(child: Manifest, keep: int) -> tuple[int, int] | None:
    """Return how many layers each end must have for all of an adapter to be in them.

    Then peers that serve the model without it compute the rest. The first end stays as it is where
    it can: stages begin where their peers' layers do. None: the ends would be the whole model.
    """
    adapted = [layer for layer in range(child.layers) if child.is_adapted(layer)]
    half = child.layers // 2
    first = max([keep, *(layer + 1 for layer in adapted if layer < half)])
    last = max([keep, *(child.layers - layer for layer in adapted if layer >= half)])
    return (first, last) if first + last < child.layers else None


def child_at_home(
    store: Store, named: ModelId, keep: int
) -> tuple[Manifest, Manifest, tuple[int, int]] | None:
    """Return a child whose adapter fits into the ends, its base, and how many layers they need."""
    manifest = store.manifest(named)
    if manifest is None or manifest.base is None:
        return None
    ends = ends_of_adapter(manifest, keep)
    return (manifest, manifest.base, ends) if ends else None
