"""Names that stand for addresses, as a DNS server on loopback answers for them."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
import trio
from trio.testing import MockClock

from tests.support.directories import identity
from transports import dnsaddr
from transports.dnsaddr import (
    DEPTH_MAX,
    FOUND_MAX,
    LOOKUP_S_MAX,
    LOOKUPS_MAX,
    is_dnsaddr,
    resolve,
)

A, B = (identity(number).peer_id for number in (1, 2))
ONE, TWO = f"/ip4/203.0.113.7/tcp/4001/p2p/{A}", f"/ip6/2001:db8::7/tcp/4001/p2p/{B}"
CIRCUIT = f"/ip4/198.51.100.4/tcp/4001/p2p/{B}/p2p-circuit/p2p/{A}"
NAME = "/dnsaddr/swarm.example.org"

Records = Mapping[str, Sequence[str]]


def quoted(text: str) -> str:
    """Return a text as a zone file has it: strings of at most 255 bytes."""
    return " ".join(f'"{text[at : at + 200]}"' for at in range(0, len(text), 200))


@asynccontextmanager
async def server(records: Records) -> AsyncIterator[dns.asyncresolver.Resolver]:
    """Run a DNS server on loopback; yields a resolver that asks it."""
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as listens:
        await listens.bind(("127.0.0.1", 0))

        async def answer() -> None:
            while True:
                data, asker = await listens.recvfrom(4096)
                query = dns.message.from_wire(data)
                reply = dns.message.make_response(query)
                reply.flags |= dns.flags.RA
                name = query.question[0].name
                if texts := records.get(name.to_text(omit_final_dot=True)):
                    reply.answer.append(dns.rrset.from_text(name, 60, "IN", "TXT", *texts))
                else:
                    reply.set_rcode(dns.rcode.NXDOMAIN)
                await listens.sendto(reply.to_wire(), asker)

        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers = ["127.0.0.1"]
        resolver.port = listens.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            yield resolver
            nursery.cancel_scope.cancel()


def record(*addresses: str) -> list[str]:
    """Return the records that name addresses."""
    return [quoted(f"dnsaddr={address}") for address in addresses]


async def asked(records: Records, *addresses: str) -> tuple[list[str], list[str]]:
    """Resolve by a server with these records."""
    async with server(records) as resolver:
        return await resolve(addresses, partial(dnsaddr._ask_txt, resolver=resolver))


async def test_a_name_stands_for_the_addresses_of_its_records() -> None:
    """In its place; records of other kinds, or that nobody here can dial, do not count."""
    told = record(ONE, f"/ip4/203.0.113.7/udp/4001/quic-v1/p2p/{A}", "/ip4/1.2.3.4/tcp/1", CIRCUIT)
    odd = record(f"/ip4/999.0.0.1/tcp/1/p2p/{A}", "/ip4/1.2.3.4/tcp/1/p2p/nobody", "", "x" * 300)
    records = {"_dnsaddr.swarm.example.org": [*told, *odd, '"v=spf1 -all"', *told]}
    (first, *others), faults = await asked(records, TWO, NAME)
    assert (first, {*others}, len(others), faults) == (TWO, {ONE, CIRCUIT}, 2, [])  # DNS shuffles


async def test_names_behind_names_are_followed() -> None:
    """And where the name ends with a peer's id, only that peer is meant."""
    records = {
        "_dnsaddr.swarm.example.org": record(f"/dnsaddr/a.example.org/p2p/{A}", TWO),
        "_dnsaddr.a.example.org": record(ONE, TWO),
    }
    assert await asked(records, NAME) == ([TWO, ONE], [])
    assert await asked(records, f"{NAME}/p2p/{A}") == ([ONE], [])


async def test_what_stands_for_nothing_is_said() -> None:
    """The others still count; a start goes on."""
    records = {"_dnsaddr.empty.example.org": ['"hello"']}
    found, faults = await asked(records, NAME, ONE, "/dnsaddr/empty.example.org")
    assert found == [ONE]
    assert [fault.partition(": ")[0] for fault in faults] == [NAME, "/dnsaddr/empty.example.org"]
    assert "DNS does not know it (The DNS query name does not exist" in faults[0]
    assert "its records name no address with a peer id on TCP" in faults[1]
    for odd in ("a..b", "x" * 70 + ".org", "\N{SNOWMAN}" * 80):
        found, faults = await asked({}, f"/dnsaddr/{odd}")
        assert (found, len(faults)) == ([], 1)


async def test_without_a_name_nobody_is_asked() -> None:
    """And nothing changes, whatever stands there."""

    async def ask_txt(_: str) -> Sequence[str]:
        raise AssertionError("there is nothing to ask")

    assert await resolve([ONE, "nonsense"], ask_txt) == ([ONE, "nonsense"], [])
    assert not any(map(is_dnsaddr, (ONE, "/dnsaddr/", "/dnsaddr/a b", "/dnsaddr/a/tcp/1")))


async def test_records_that_lead_on_and_on_are_left(autojump_clock: MockClock) -> None:
    """After some names, at some depth, with enough addresses, whatever a stranger writes."""
    names: list[str] = []

    async def ask_txt(name: str) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        names.append(name)
        number = len(names)
        wide = [f"dnsaddr=/dnsaddr/n{number}-{each}.example.org" for each in range(200)]
        return [f"dnsaddr=/ip4/10.0.{number}.{each}/tcp/1/p2p/{A}" for each in range(10)] + wide

    found, _ = await resolve([NAME], ask_txt)
    assert len(names) == LOOKUPS_MAX
    assert len(found) == FOUND_MAX

    deep: list[str] = []

    async def ask_deep(name: str) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        deep.append(name)
        return [f"dnsaddr=/dnsaddr/x.{name.removeprefix('_dnsaddr.')}"]

    assert (await resolve([NAME], ask_deep))[0] == []
    assert len(deep) == DEPTH_MAX

    async def ask_circle(name: str) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        return [f"dnsaddr={NAME}", f"dnsaddr={ONE}"]

    assert await resolve([NAME], ask_circle) == ([ONE], [])


async def test_a_resolver_that_is_silent_does_not_hold_up_a_start(
    autojump_clock: MockClock,
) -> None:
    """What others have answered until then counts."""

    async def ask_txt(name: str) -> Sequence[str]:
        if "silent" in name:
            await trio.sleep_forever()
        return [f"dnsaddr={ONE}"]

    silent = "/dnsaddr/silent.example.org"
    assert await resolve([silent, NAME], ask_txt) == (
        [ONE],
        [f"{silent}: no answer within {LOOKUP_S_MAX:g} s"],
    )
    assert trio.current_time() <= LOOKUP_S_MAX


@pytest.mark.parametrize("error", [OSError(101, "Network is unreachable"), OSError("refused")])
async def test_a_machine_without_a_network_says_so(error: OSError) -> None:
    """In the system's words."""

    async def ask_txt(_: str) -> Sequence[str]:
        raise error

    text: Any = error.strerror or error
    assert await resolve([NAME], ask_txt) == ([], [f"{NAME}: {text}"])
