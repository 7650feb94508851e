"""Trees over rows: roots and truncation."""

from hypothesis import given
from hypothesis import strategies as st

from p2pinfer.core.merkle import Tree, leaf, root_by_path
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


@given(ROWS.filter(bool), st.data())
def test_a_path_leads_from_a_row_to_the_root(
    rows: list[tuple[bytes, Regime]], data: st.DataObject
) -> None:
    """One row is shown to be in a tree by a hash for each level, also in a longer tree."""
    count = data.draw(st.integers(1, len(rows)))
    position = data.draw(st.integers(0, count - 1))
    tree = grown(rows)
    path = tree.path(position, count)
    assert len(path) <= count.bit_length()
    row, regime = rows[position]
    found = leaf(position, row, regime=regime)
    assert found == tree.leaf(position)
    assert root_by_path(position, count, found, path) == tree.root(count)


@given(ROWS.filter(bool), st.data())
def test_no_other_path_leads_to_the_root(
    rows: list[tuple[bytes, Regime]], data: st.DataObject
) -> None:
    """Not from another row, for another position, of another length, or through another hash."""
    count = len(rows)
    position = data.draw(st.integers(0, count - 1))
    tree = grown(rows)
    path, root, found = tree.path(position, count), tree.root(count), tree.leaf(position)
    assert root_by_path(position, count, bytes(32), path) != root
    assert root_by_path(position, count, found, (*path, bytes(32))) == b""
    assert root_by_path(position, count, found, path[:-1]) in ({root} if not path else {b""})
    for at in range(len(path)):
        changed = (*path[:at], bytes(32), *path[at + 1 :])
        assert root_by_path(position, count, found, changed) != root
    for other in set(range(count)) - {position}:
        assert root_by_path(other, count, found, path) != root
