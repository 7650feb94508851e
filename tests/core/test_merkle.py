"""Trees over rows: roots and truncation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pinfer.core.merkle import Tree, leaf, root_over
from p2pinfer.core.regimes import Regime

ROWS = st.lists(st.tuples(st.binary(max_size=12), st.sampled_from(Regime)), max_size=70)


def grown(rows: list[tuple[bytes, Regime]]) -> Tree:
    """Return a tree over rows and their regimes."""
    tree = Tree()
    for row, regime in rows:
        tree.append(row, regime=regime)
    return tree


@given(ROWS, st.data())
def test_a_prefix_has_the_root_of_a_tree_of_its_own(
    rows: list[tuple[bytes, Regime]], data: st.DataObject
) -> None:
    """So a receipt at a checkpoint and a later one agree on their common rows."""
    count = data.draw(st.integers(0, len(rows)))
    assert grown(rows).root(count) == grown(rows[:count]).root(count)


@given(ROWS, ROWS, st.data())
def test_going_back_leaves_no_trace(
    rows: list[tuple[bytes, Regime]], others: list[tuple[bytes, Regime]], data: st.DataObject
) -> None:
    """Dropped positions may be filled again, as if they had been empty."""
    count = data.draw(st.integers(0, len(rows)))
    tree = grown(rows)
    tree.truncate(count)
    for row, regime in others:
        tree.append(row, regime=regime)
    kept = rows[:count] + others
    assert (len(tree), tree.root(len(kept))) == (len(kept), grown(kept).root(len(kept)))


@given(ROWS, ROWS)
def test_other_rows_have_another_root(
    rows: list[tuple[bytes, Regime]], others: list[tuple[bytes, Regime]]
) -> None:
    """A root binds rows, regimes, positions and their number."""
    same = grown(rows).root(len(rows)) == grown(others).root(len(others))
    assert same == (rows == others)


def test_leaves_nodes_and_roots_differ() -> None:
    """A row of two hashes is no inner node, and the root of one row is not its leaf."""
    tree = grown([(b"a", Regime.NARROW), (b"b", Regime.NARROW)])
    pair = leaf(0, b"a", regime=Regime.NARROW) + leaf(1, b"b", regime=Regime.NARROW)
    assert grown([(pair, Regime.NARROW)]).root(1) != tree.root(2)
    assert grown([(b"a", Regime.NARROW)]).root(1) != leaf(0, b"a", regime=Regime.NARROW)


@given(st.integers(1, 70), st.data())
def test_a_path_shows_that_rows_are_under_a_root(count: int, data: st.DataObject) -> None:
    """Of any run of leaves, in a tree that has grown on; and of no others."""
    tree = grown([(bytes([at]), Regime.WIDE) for at in range(80)])
    start = data.draw(st.integers(0, count - 1))
    end = data.draw(st.integers(start + 1, count))
    leaves = [leaf(at, bytes([at]), regime=Regime.WIDE) for at in range(start, end)]
    path = tree.path(start, end, count)
    assert root_over(leaves, start, count, path) == tree.root(count)
    false = data.draw(st.integers(0, len(leaves) - 1))
    leaves[false] = leaf(start + false, b"other", regime=Regime.WIDE)
    assert root_over(leaves, start, count, path) != tree.root(count)


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 20), st.integers(0, 20))
def test_a_path_of_another_length_is_refused(
    count: int, start: int, known: int, steps: int
) -> None:
    """Whatever a peer says, there is a root or a refusal."""
    tree, path = grown([(b"", Regime.WIDE)] * 40), [b"h" * 32] * steps
    is_due = (
        start + known <= count and known and steps == len(tree.path(start, start + known, count))
    )
    if is_due:
        assert root_over([b"l" * 32] * known, start, count, path) != tree.root(count)
    else:
        with pytest.raises(ValueError, match="length"):
            root_over([b"l" * 32] * known, start, count, path)
