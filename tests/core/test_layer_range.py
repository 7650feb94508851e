"""Ranges of layers."""

import pytest

from p2pinfer.core.layer_range import LayerRange


@pytest.mark.parametrize(("first", "end"), [(5, 4), (-1, 3)])
def test_what_ends_before_it_begins_is_no_range(first: int, end: int) -> None:
    """Nor is one that begins before the first layer."""
    with pytest.raises(ValueError, match=f"{first}:{end}"):
        LayerRange(first, end)


def test_layers_of_a_range() -> None:
    """The end is not in it."""
    layers = LayerRange(1, 4)
    assert (len(layers), list(layers.each()), str(layers)) == (3, [1, 2, 3], "1:4")
    assert [layer in layers for layer in (0, 1, 3, 4)] == [False, True, True, False]
    assert not LayerRange(2, 2)


@pytest.mark.parametrize(
    ("layers", "ranges"),
    [([], []), ([3], ["3:4"]), ([1, 2, 3], ["1:4"]), ([1, 2, 5, 7, 8], ["1:3", "5:6", "7:9"])],
)
def test_layers_are_joined(layers: list[int], ranges: list[str]) -> None:
    """Neighbours make one range."""
    assert [str(each) for each in LayerRange.joined(layers)] == ranges


def test_covering() -> None:
    """A range covers itself and what lies within it."""
    outer = LayerRange(2, 8)
    inner = [(2, 8), (2, 3), (7, 8), (4, 4)]
    assert all(outer.covers(LayerRange(*each)) for each in inner)
    assert not any(outer.covers(LayerRange(*each)) for each in [(1, 3), (7, 9), (0, 9), (9, 9)])


@pytest.mark.parametrize(
    ("layers", "part"),
    [((0, 9), (2, 8)), ((3, 5), (3, 5)), ((0, 3), (2, 3)), ((0, 1), (2, 2)), ((9, 9), (8, 8))],
)
def test_part_within_bounds(layers: tuple[int, int], part: tuple[int, int]) -> None:
    """Outside the bounds nothing is left."""
    assert LayerRange(*layers).within(LayerRange(2, 8)) == LayerRange(*part)


def test_what_nobody_holds_is_lacking() -> None:
    """Whatever others hold besides."""
    held = [LayerRange(0, 3), LayerRange(4, 5), LayerRange(4, 4)]
    assert LayerRange(1, 7).lacking(held) == [3, 5, 6]
    assert LayerRange(0, 2).lacking(held) == []
