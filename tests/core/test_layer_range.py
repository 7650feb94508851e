"""Ranges of layers."""

import pytest

from p2pinfer.core.layer_range import LayerRange


@pytest.mark.parametrize(("first", "end"), [(5, 4), (-1, 3)])
def test_an_end_before_the_beginning_is_refused(first: int, end: int) -> None:
    """So is a beginning before the first layer."""
    with pytest.raises(ValueError, match=f"{first}:{end}"):
        LayerRange(first, end)


def test_layers_of_a_range() -> None:
    """The end is exclusive."""
    layers = LayerRange(1, 4)
    assert (len(layers), list(layers.each()), str(layers)) == (3, [1, 2, 3], "1:4")
    assert [layer in layers for layer in (0, 1, 3, 4)] == [False, True, True, False]
    assert not LayerRange(2, 2)


@pytest.mark.parametrize(
    ("layers", "ranges"),
    [([], []), ([3], ["3:4"]), ([1, 2, 3], ["1:4"]), ([1, 2, 5, 7, 8], ["1:3", "5:6", "7:9"])],
)
def test_layers_are_joined(layers: list[int], ranges: list[str]) -> None:
    """Adjacent layers make one range."""
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
    """A range outside the bounds has an empty part."""
    assert LayerRange(*layers).within(LayerRange(2, 8)) == LayerRange(*part)


def test_layers_in_no_held_range_are_lacking() -> None:
    """Layers outside this range do not matter."""
    held = [LayerRange(0, 3), LayerRange(4, 5), LayerRange(4, 4)]
    assert LayerRange(1, 7).lacking(held) == [3, 5, 6]
    assert LayerRange(0, 2).lacking(held) == []
