"""How many layers a requester keeps for an adapter that nobody serves."""

from types import SimpleNamespace
from typing import cast

import pytest

from p2pinfer.core.manifest import Manifest
from p2pinfer.node.adapter_ends import ends_of_adapter


@pytest.mark.parametrize(
    ("adapted", "keep", "ends"),
    [
        ({26, 27, 28, 29}, 1, (1, 4)),  # as learning at home makes it: the first end stays
        ({29}, 2, (2, 2)),
        (set(), 1, (1, 1)),  # of the embedding and the head alone
        ({0, 2, 28}, 1, (3, 2)),
        ({14, 29}, 1, (15, 1)),
        (set(range(30)), 1, None),
    ],
)
def test_ends_hold_all_that_an_adapter_changes(
    adapted: set[int], keep: int, ends: tuple[int, int] | None
) -> None:
    """Not more than that at either end, and at least what was asked for."""
    child = cast("Manifest", SimpleNamespace(layers=30, is_adapted=adapted.__contains__))
    assert ends_of_adapter(child, keep) == ends
