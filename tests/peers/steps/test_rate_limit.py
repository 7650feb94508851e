"""A peer may do what its token bucket allows, whatever other peers do."""

from hypothesis import given
from hypothesis import strategies as st

from p2pinfer.core.ids import PeerId
from peers.steps.rate_limit import PEERS_MAX, RateLimits

MOST, PER_S = 4, 2.0
ONE, OTHER = PeerId("one"), PeerId("other")


@given(
    st.lists(
        st.tuples(st.sampled_from([ONE, OTHER]), st.integers(0, 16), st.integers(1, 3)),
        max_size=60,
    )
)
def test_each_peer_has_a_token_bucket(acts: list[tuple[PeerId, int, int]]) -> None:
    """It allows what counting tokens allows, at any times and amounts."""
    allowances = RateLimits(MOST, PER_S)
    left, since = {ONE: float(MOST), OTHER: float(MOST)}, {ONE: 0.0, OTHER: 0.0}
    now = 0.0
    for peer, quarters, amount in acts:
        now += quarters / 4
        left[peer] = min(float(MOST), left[peer] + PER_S * (now - since[peer]))
        since[peer] = now
        may = left[peer] >= amount
        left[peer] -= amount if may else 0
        assert allowances.spend(peer, now, amount) is may


def test_of_too_many_peers_the_fullest_buckets_are_forgotten() -> None:
    """A crowd of strangers does not refill a used bucket."""
    allowances = RateLimits(MOST, PER_S)
    for _ in range(MOST):
        assert allowances.spend(ONE, 0.0)
    for number in range(3 * PEERS_MAX):
        assert allowances.spend(PeerId(f"stranger {number}"), 0.0)
    assert not allowances.spend(ONE, 0.0)
    assert len(allowances._full_at) <= PEERS_MAX
