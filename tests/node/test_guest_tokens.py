"""Single-use invitations: the key for a token, once, over a handshake that a real host answers."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from p2pinfer.core.errors import NobodyServes, PeerUnavailable, UserError
from p2pinfer.node import guest_tokens
from p2pinfer.node.guest_tokens import (
    TOKENS_MAX,
    VALID_S,
    GuestTokens,
    enter_as_guest,
    key_file,
    open_tokens,
    revoke,
)
from p2pinfer.node.invitation import Invitation
from transports.base import Reach, Relaying
from transports.libp2p.circuit import circuit_address
from transports.libp2p.guest_passage import PASSAGE, PASSAGES_BURST
from transports.libp2p.guests import GUEST_NOISE, fetch_network_key
from transports.libp2p.transport import Libp2pTransport, open_libp2p
from transports.secret import token_id

TEST_S_MAX = 20.0
HERE = ["/ip4/127.0.0.1/tcp/0"]
PRIVATE = Reach("home", b"k" * 32)


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path))


@pytest.fixture
def tokens() -> GuestTokens:
    """Provide the tokens of the private network."""
    return GuestTokens(PRIVATE)


@asynccontextmanager
async def host(tokens: GuestTokens) -> AsyncIterator[Libp2pTransport]:
    """Run a peer of the private network that lets guests in."""
    with trio.fail_after(TEST_S_MAX):
        async with open_libp2p(None, HERE, PRIVATE, guests=tokens) as found:
            yield found


async def test_a_guest_gets_the_key_once(tokens: GuestTokens) -> None:
    """It is kept, so that the same invitation goes on working there, and nowhere else."""
    token = tokens.issue()
    async with host(tokens) as inviting:
        invited = Invitation("home", None, None, tuple(inviting.addresses), token)
        entered = await enter_as_guest(invited)
        assert (entered.key, entered.token) == (PRIVATE.key, None)
        assert list(open_tokens()) == []
        assert await enter_as_guest(invited) == entered  # no longer asks
        assert key_file(token).stat().st_mode & 0o777 == 0o600
        key_file(token).unlink()  # as on another machine
        with pytest.raises(UserError, match="was used already, or it was revoked or has expired"):
            await enter_as_guest(invited)
    assert await_nothing_connected(inviting)


def await_nothing_connected(transport: Libp2pTransport) -> bool:
    """Whether no guest has become a connection of the host."""
    return not transport._host.get_network().get_connections()


async def test_of_many_guests_with_one_token_one_gets_in(tokens: GuestTokens) -> None:
    """At once; the others are told what has happened."""
    token = tokens.issue()
    got: list[bytes | str] = []

    async with host(tokens) as inviting:

        async def call() -> None:
            try:
                got.append(await fetch_network_key(inviting.addresses, token))
            except UserError as error:
                got.append(str(error))

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(call)
    assert got.count(b"k" * 32) == 1
    assert all("used already" in str(each) for each in got if isinstance(each, str))
    assert len(got) == 8


async def test_what_is_revoked_or_expired_opens_nothing(
    tokens: GuestTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the peer runs: it looks when a guest calls."""
    first, second, third = (tokens.issue() for _ in range(3))
    async with host(tokens) as inviting:
        assert revoke(token_id(first))
        assert not revoke(token_id(first))
        later = guest_tokens._now_s() + VALID_S + 1
        with pytest.raises(UserError, match="revoked"):
            await fetch_network_key(inviting.addresses, first)
        assert await fetch_network_key(inviting.addresses, second) == PRIVATE.key
        monkeypatch.setattr(guest_tokens, "_now_s", lambda: later)
        with pytest.raises(UserError, match="expired"):
            await fetch_network_key(inviting.addresses, third)
    assert list(open_tokens()) == []


async def test_a_token_opens_nothing_but_its_own_network(tokens: GuestTokens) -> None:
    """Of two that one machine is in; and no name of a file that a stranger says."""
    elsewhere = GuestTokens(Reach("home", b"x" * 32))
    token = elsewhere.issue()
    async with host(tokens) as inviting:
        with pytest.raises(UserError):
            await fetch_network_key(inviting.addresses, token)
    assert list(open_tokens()) == [token_id(token)]
    for odd in ("", "../identity", "/etc/passwd", "A" * 32, token_id(token).upper()):
        assert tokens.token(odd) is None
        assert elsewhere.token(odd) is None


async def test_a_guest_is_no_member(tokens: GuestTokens) -> None:
    """With the token for a key it opens no channel; what is not the network's key opens nothing."""
    token = tokens.issue()
    async with host(tokens) as inviting, open_libp2p(None, [], Reach("home", token)) as guest:
        with pytest.raises(PeerUnavailable):
            await guest.connect(inviting.addresses[0])
        security = guest._host.get_network().upgrader.security_multistream  # type: ignore[attr-defined]
        assert len(security.transports) == 1
        own = inviting._host.get_network().upgrader.security_multistream  # type: ignore[attr-defined]
        assert f"{GUEST_NOISE}{token_id(token)}" in own.multiselect.handlers
        assert (
            list(own.transports)
            == list(own.multiselect.get_protocols())
            == ["/p2pinfer/noise-xxpsk0/1"]
        )
    assert list(open_tokens()) == [token_id(token)]


async def test_a_guest_is_passed_on_to_a_peer_behind_a_relay(tokens: GuestTokens) -> None:
    """The relay has the network's key as well, yet neither it nor the passage is a way in."""
    token, other = tokens.issue(), tokens.issue()
    relaying = Reach("home", PRIVATE.key, relaying=Relaying.ALWAYS)
    with trio.fail_after(TEST_S_MAX):
        async with (
            open_libp2p(None, HERE, relaying) as relay,
            open_libp2p(None, [], PRIVATE, guests=tokens) as hidden,
        ):
            outer = await hidden.reach_directly(relay.peer_id, relay.own_addresses)
            (place,) = relay.own_addresses
            circuit = circuit_address(place, hidden.peer_id)
            with pytest.raises(NobodyServes, match="is not held by that machine now"):
                await fetch_network_key([circuit], token)
            await hidden.circuits.reserve(outer)
            assert await fetch_network_key([circuit], token) == PRIVATE.key
            with pytest.raises(UserError, match="was used already"):
                await fetch_network_key([circuit], token)
            async with open_libp2p(None, [], Reach("home", other)) as guest:
                with pytest.raises(PeerUnavailable):
                    await guest.connect(circuit)
            security = relay._host.get_network().upgrader.security_multistream  # type: ignore[attr-defined]
            known = security.multiselect.handlers
            assert f"{PASSAGE}{hidden.peer_id}" in known
            assert all(f"{PASSAGE}{name}" not in known for name in (guest.peer_id, "nonsense"))
            for connected in (relay, hidden):
                assert len(connected._host.get_network().get_connections()) == 1
            await outer.close()
            with pytest.raises(NobodyServes):
                await fetch_network_key([circuit], other)
    assert list(open_tokens()) == [token_id(other)]


async def test_strangers_cannot_keep_a_relay_busy(tokens: GuestTokens) -> None:
    """What they may make it ask of a hidden peer is few, for few bytes, and soon over."""
    relaying = Reach("home", PRIVATE.key, relaying=Relaying.ALWAYS)
    tokens.issue()
    with trio.fail_after(TEST_S_MAX):
        async with (
            open_libp2p(None, HERE, relaying) as relay,
            open_libp2p(None, [], PRIVATE, guests=tokens) as hidden,
        ):
            await hidden.circuits.reserve(
                await hidden.reach_directly(relay.peer_id, relay.own_addresses)
            )
            circuit = circuit_address(relay.own_addresses[0], hidden.peer_id)
            told = []
            for _ in range(PASSAGES_BURST + 5):
                try:
                    await fetch_network_key([circuit], b"?" * 32)
                except (UserError, NobodyServes) as error:
                    told.append(type(error))
            assert told.count(UserError) < PASSAGES_BURST + 5
            assert told[0] is UserError
            assert told[-1] is NobodyServes
            assert len(hidden._host.get_network().get_connections()) == 1


async def test_whoever_sits_at_the_address_by_now_gets_no_token(tokens: GuestTokens) -> None:
    """Another peer there, which even knows the token's id, cannot finish the handshake."""

    class Thief:
        def token(self, known: str) -> bytes:
            return b"?" * 32

        def claim(self, known: str) -> bool:
            return True

    token = tokens.issue()
    with trio.fail_after(TEST_S_MAX):
        async with open_libp2p(None, HERE, Reach("home", b"z" * 32), guests=Thief()) as thief:
            with pytest.raises(NobodyServes, match="does not answer, and only it can let a guest"):
                await fetch_network_key(thief.addresses, token)
    assert list(open_tokens()) == [token_id(token)]


async def test_nobody_at_the_address_is_said(tokens: GuestTokens) -> None:
    """The token is not used up by that."""
    token = tokens.issue()
    async with host(tokens) as gone:
        addresses = tuple(gone.addresses)
    with pytest.raises(NobodyServes, match=r"connection refused\): p2pinfer join must run there"):
        await enter_as_guest(Invitation("home", None, None, addresses, token))
    assert list(open_tokens()) == [token_id(token)]


def test_tokens_are_for_their_owner_alone_and_few(tokens: GuestTokens, tmp_path: Path) -> None:
    """Damaged ones are removed; the network's key is in none."""
    token = tokens.issue()
    path = tmp_path / "data" / "invitations" / token_id(token)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert PRIVATE.key
    assert PRIVATE.key.hex() not in path.read_text()
    said = json.loads(path.read_text())
    for damage in ("", "{}", "[]", json.dumps(said | {"until": "soon"}), '{"token": 1}'):
        path.write_text(damage)
        assert tokens.token(token_id(token)) is None
    assert list(open_tokens()) == []
    assert not path.exists()
    for _ in range(TOKENS_MAX):
        tokens.issue()
    with pytest.raises(UserError, match="--revoke all"):
        tokens.issue()
