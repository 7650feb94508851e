"""A peer on this machine signs for requesters on it, over its status socket."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from p2pinfer.core.sponsor import SPONSORED_MS_MAX
from p2pinfer.node.sponsors import Sponsorship, clock_ms, sponsor
from p2pinfer.node.status_socket import Status, open_status
from tests.support.swarm import KEYS
from transports.identity import Identity

PEER, ASKER, OTHER = KEYS[:3]
SOON_S = 5.0


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path))


def describe(state: str = "serving", network: str = "main") -> Status:
    """Return a peer's status."""
    return {
        "role": "peer", "network": network, "peer": PEER.peer_id, "addresses": [], "state": state,
    }  # fmt: skip


async def found(
    answer: Callable[[Status], Status], told: Status | None = None, asker: Identity = ASKER
) -> Sponsorship:
    """Look once for a sponsor in the network named main."""
    sponsorship = Sponsorship(asker.peer_id, "main")
    async with open_status(lambda: told or describe(), answer), trio.open_nursery() as nursery:
        nursery.start_soon(sponsorship.run)
        with trio.move_on_after(SOON_S if told is None else 1.0):
            while not sponsorship.current():  # noqa: ASYNC110 -- of another process, as a rule
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    return sponsorship


async def test_the_local_peer_signs_for_a_local_requester() -> None:
    """Only for that requester, and for a limited time."""
    word = (await found(partial(sponsor, PEER, "main"))).current()
    assert word
    assert word.peer == PEER.peer_id
    assert 0 < word.expires_ms - clock_ms() <= SPONSORED_MS_MAX


@pytest.mark.parametrize(
    ("told", "signer", "network"),
    [
        (describe(state="joining"), PEER, "main"),
        (describe(network="another"), PEER, "another"),
        (describe() | {"peer": 7}, PEER, "main"),
        (describe(), OTHER, "main"),
        (describe(), PEER, "another"),
    ],
)
async def test_an_unsuitable_signature_is_not_used(
    told: Status, signer: Identity, network: str
) -> None:
    """From a peer that does not serve or is in another network, or one that is invalid."""
    assert (await found(partial(sponsor, signer, network), told)).current() is None


async def test_an_expired_signature_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after the machine slept, until the next search."""
    sponsorship = await found(partial(sponsor, PEER, "main"))
    later_ms = clock_ms() + SPONSORED_MS_MAX
    monkeypatch.setattr("p2pinfer.node.sponsors.clock_ms", lambda: later_ms)
    assert sponsorship.current() is None


@pytest.mark.parametrize("question", [{}, {"sponsor": 7}, {"sponsor": "x"}, {"sponsor": "x" * 99}])
def test_nothing_is_signed_without_a_requester(question: Status) -> None:
    """Nor for text that is no peer's id."""
    assert sponsor(PEER, "main", question) == {}
