"""Addresses behind a name: ``/dnsaddr/swarm.example.org`` stands for those in its TXT records.

So the ways into a swarm can change without anybody's command line changing. The records are those
of https://github.com/multiformats/multiaddr/blob/master/protocols/DNSADDR.md: ``dnsaddr=/ip4/…`` at
``_dnsaddr.swarm.example.org``, which may name further names. Strangers write them, and answer for
DNS on the way: all that they say is bounded, and only dialled.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

import trio

from p2pinfer.core.checks import ADDRESS_CHARS_MAX

DEPTH_MAX: Final = 4
"""Names behind names; public swarms use two."""

LOOKUPS_MAX: Final = 16
"""Names asked for at one start, so that records do not make a machine flood a resolver."""

FOUND_MAX: Final = 32
"""Addresses taken from all records; they are dialled at once."""

LOOKUP_S_MAX: Final = 5.0
"""For all names together: a resolver that is down must not hold up a start that has other ways."""

RECORDS_MAX: Final = 64
"""Looked at in one answer."""

_NAME: Final = re.compile(r"/dnsaddr/([^/\s]{1,253})((?:/p2p/\w+)?)")

_DIALLED: Final = re.compile(
    r"/(?:ip4|ip6|dns|dns4|dns6)/[^/\s]+/tcp/\d+(?:/p2p/\w+/p2p-circuit)?/p2p/\w+", re.ASCII
)
"""What this program can dial; the records of a swarm of others also name QUIC and more."""

AskTxt = Callable[[str], Awaitable[Sequence[str]]]
"""Returns the texts of a name's TXT records; raises OSError with a reason."""


def is_dnsaddr(address: str) -> bool:
    """Whether an address is a name that stands for others."""
    return _NAME.fullmatch(address) is not None


async def resolve(
    addresses: Sequence[str], ask_txt: AskTxt | None = None
) -> tuple[list[str], list[str]]:
    """Return addresses with names replaced by what they stand for, and why names gave none.

    Args:
        addresses: multiaddrs, with or without names among them; the others stay as they are.
        ask_txt: asks for TXT records; the machine's resolver if None.
    """
    names = [each for each in addresses if is_dnsaddr(each)]
    if not names:
        return list(addresses), []
    lookup = _Lookup(ask_txt or _ask_txt)
    with trio.move_on_after(LOOKUP_S_MAX):
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(lookup.follow, name, name, 1)
    found: list[str] = []
    for each in addresses:
        found += lookup.found.get(each, []) if each in names else [each]
    faults = [
        f"{name}: {lookup.faults.get(name, f'no answer within {LOOKUP_S_MAX:g} s')}"
        for name in dict.fromkeys(names)
        if not lookup.found.get(name)
    ]
    return list(dict.fromkeys(found)), faults


class _Lookup:
    """One search for all that some names stand for."""

    def __init__(self, ask_txt: AskTxt) -> None:
        self._ask_txt = ask_txt
        self._asked: set[str] = set()
        self._left = FOUND_MAX
        self.found: dict[str, list[str]] = {}
        """What each name of a person's stands for."""
        self.faults: dict[str, str] = {}

    async def follow(self, name: str, of: str, depth: int) -> None:
        """Look up one name, and those behind it; ``of`` is the name that a person gave."""
        parsed = _NAME.fullmatch(name)
        assert parsed, "only names are followed"
        host, suffix = parsed.groups()
        if name in self._asked or len(self._asked) >= LOOKUPS_MAX:
            return
        self._asked.add(name)
        try:
            texts = await self._ask_txt(f"_dnsaddr.{host}")
        except OSError as error:
            self.faults.setdefault(of, error.strerror or str(error))
            return
        behind = []
        for said in _said(texts):
            if not said.endswith(suffix):
                continue
            if is_dnsaddr(said):
                behind.append(said)
            elif self._left and is_dialled(said):
                self._left -= 1
                self.found.setdefault(of, []).append(said)
        if not behind:
            self.faults.setdefault(of, "its records name no address with a peer id on TCP")
        elif depth < DEPTH_MAX:
            async with trio.open_nursery() as nursery:
                for each in behind:
                    nursery.start_soon(self.follow, each, of, depth + 1)


def _said(texts: Iterable[str]) -> list[str]:
    """Return the addresses that records say."""
    prefix = "dnsaddr="
    found = [text.removeprefix(prefix) for text in texts if text.startswith(prefix)]
    return [each for each in found[:RECORDS_MAX] if len(each) <= ADDRESS_CHARS_MAX]


def is_dialled(address: str) -> bool:
    """Whether an address can be dialled, as far as it can be told."""
    from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it ships no types

    if not _DIALLED.fullmatch(address):
        return False
    try:
        Multiaddr(address)
    except Exception:  # noqa: BLE001 - its parsers raise what they like
        return False
    return True


async def _ask_txt(name: str, resolver: Any = None) -> list[str]:
    """Ask the machine's resolver for TXT records."""
    import dns.asyncresolver  # a tenth of a second, and few need it
    from dns.exception import DNSException

    try:
        resolver = resolver or dns.asyncresolver.Resolver()
        answer = await resolver.resolve(name, "TXT", lifetime=LOOKUP_S_MAX, search=False)
    except DNSException as error:
        text = " ".join(str(error).split())
        raise OSError(f"DNS does not know it ({text[:200]})") from error
    except Exception as error:  # such as of a name in no alphabet, or an answer of no sense
        raise OSError(f"it cannot be looked up ({error!r:.200})") from error
    return [b"".join(record.strings).decode(errors="replace") for record in answer][:RECORDS_MAX]
