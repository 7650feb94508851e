"""The table of a swarm: columns that follow the advertisements."""

from hypothesis import given
from hypothesis import strategies as st

from p2pinfer.core.advertisement import RoundTrip, State
from scheduler.offer_table import ROWS_MIN, OfferTable, believed_row_us, peer_key
from tests.support.adverts import advert, peer_id

names = st.integers(0, 3 * ROWS_MIN).map(str)
changes = st.lists(st.tuples(st.booleans(), names, st.integers(0, 9)), max_size=120)


@given(changes)
def test_a_view_follows_what_is_put_and_dropped(changes: list[tuple[bool, str, int]]) -> None:
    """There is one row per peer that was put and not dropped since: its newest advertisement."""
    view = OfferTable()
    expected = {}
    for put, name, first in changes:
        if put:
            offer = advert(
                name, first, 10, state=list(State)[first % 3], links=(RoundTrip(peer_id(name), 7),)
            )
            view.put(offer)
            expected[offer.peer] = offer
        else:
            view.drop(peer_id(name))
            expected.pop(peer_id(name), None)
    assert len(view) == len(expected)
    for peer, offer in expected.items():
        row = view.row_of(peer)
        assert row is not None
        assert view.advertisement(row) == offer
        assert view.column("key")[row] == peer_key(peer)
        assert view.column("first")[row] == offer.first
        assert view.is_state(offer.state)[row]
        assert [int(column[row][0]) for column in view.links()] == [peer_key(peer), 7]
    assert all(
        view.row_of(peer_id(str(n))) is None or peer_id(str(n)) in expected for n in range(50)
    )


def test_impossible_speeds_are_cut() -> None:
    """A claim is cut to ten times the median; a peer without a claim is as slow as most."""
    claims = {"a": 1, "b": 0, "c": 4000, "d": 6000}
    view = OfferTable.of([advert(name, 1, 2, row_us=us) for name, us in claims.items()])
    assert believed_row_us(view).tolist() == [400, 4000, 4000, 6000]
