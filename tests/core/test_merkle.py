"""Trees over rows: roots, paths, and going back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pinfer.core.merkle import Tree, WrongProof, leaf, root_through

ROWS = st.lists(st.tuples(st.binary(max_size=12), st.booleans()), max_size=70)


def grown(rows: list[tuple[bytes, bool]]) -> Tree:
    """Return a tree over rows and their regimes."""
    tree = Tree()
    for row, wide in rows:
        tree.append(row, wide=wide)
    return tree


@given(ROWS, st.data())
def test_a_prefix_has_the_root_of_a_tree_of_its_own(
    rows: list[tuple[bytes, bool]], data: st.DataObject
) -> None:
    """So a receipt at a checkpoint and a later one cover the same rows."""
    count = data.draw(st.integers(0, len(rows)))
    assert grown(rows).root(count) == grown(rows[:count]).root(count)


@given(ROWS, ROWS, st.data())
def test_going_back_leaves_no_trace(
    rows: list[tuple[bytes, bool]], others: list[tuple[bytes, bool]], data: st.DataObject
) -> None:
    """Dropped positions may be filled again, as if nothing had been there."""
    count = data.draw(st.integers(0, len(rows)))
    tree = grown(rows)
    tree.truncate(count)
    for row, wide in others:
        tree.append(row, wide=wide)
    kept = rows[:count] + others
    assert (len(tree), tree.root(len(kept))) == (len(kept), grown(kept).root(len(kept)))


@given(ROWS.filter(bool), st.data())
def test_a_path_leads_to_the_root_of_any_prefix(
    rows: list[tuple[bytes, bool]], data: st.DataObject
) -> None:
    """An opened row is checked with logarithmically many hashes."""
    count = data.draw(st.integers(1, len(rows)))
    position = data.draw(st.integers(0, count - 1))
    tree, (row, wide) = grown(rows), rows[position]
    path = tree.path(position, count)
    assert root_through(leaf(position, row, wide=wide), position, count, path) == tree.root(count)
    assert len(path) <= count.bit_length() + 1


@given(ROWS.filter(bool), st.data())
def test_nothing_else_leads_there(rows: list[tuple[bytes, bool]], data: st.DataObject) -> None:
    """Neither another row, regime, position, count nor a path with one bit changed."""
    position = data.draw(st.integers(0, len(rows) - 1))
    tree, (row, wide), count = grown(rows), rows[position], len(rows)
    path, root = tree.path(position, count), tree.root(count)
    assert root_through(leaf(position, row + b"x", wide=wide), position, count, path) != root
    assert root_through(leaf(position, row, wide=not wide), position, count, path) != root
    assert root_through(leaf(position + 1, row, wide=wide), position, count, path) != root
    for at in range(len(path)):
        bad = [*path]
        bad[at] = bytes([bad[at][0] ^ 1]) + bad[at][1:]
        assert root_through(leaf(position, row, wide=wide), position, count, bad) != root
    for wrong in ([*path, root], path[:-1] if path else [root]):
        with pytest.raises(WrongProof):
            root_through(leaf(position, row, wide=wide), position, count, wrong)


@given(ROWS, ROWS)
def test_other_rows_have_another_root(
    rows: list[tuple[bytes, bool]], others: list[tuple[bytes, bool]]
) -> None:
    """A root binds rows, regimes, positions and how many there are."""
    same = grown(rows).root(len(rows)) == grown(others).root(len(others))
    assert same == (rows == others)


def test_leaves_nodes_and_roots_are_told_apart() -> None:
    """What looks like two hashes is not an inner node, and a tree of one is not its leaf."""
    tree = grown([(b"a", False), (b"b", False)])
    pair = leaf(0, b"a", wide=False) + leaf(1, b"b", wide=False)
    assert grown([(pair, False)]).root(1) != tree.root(2)
    assert grown([(b"a", False)]).root(1) != leaf(0, b"a", wide=False)
    with pytest.raises(WrongProof):
        root_through(pair[:32], 2, 2, [pair[32:]])
