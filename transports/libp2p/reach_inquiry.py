"""Which peers to ask to dial which address, and what follows from their answers.

Only decides: who asks is `transports.libp2p.reach_watch`. One inquiry is about the addresses of one
family (IPv4 or IPv6). An address counts as dialable once two peers of different networks have
proved it, or the only one that can be asked; no address does once three dials of each have failed.
"""

import ipaddress
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import Final

from p2pinfer.core.ids import PeerId
from transports.base import Reachability

PROOFS_MIN = 2
"""From different networks: one peer may be near in a way that is not seen, or help a liar."""

FAILURES_MIN = 3
"""For an address that nobody could dial; a liar alone must not hide a peer."""

FAILURES_OF_FEW = 2
"""The same where fewer than three peers can be asked: each is asked twice."""

ASKED_AT_ONCE = 3
"""Peers, for one address."""

ASKED_TWICE = 2
"""Times that a peer is asked for one address in one inquiry."""

CANDIDATES_MAX = 4
"""Addresses of one family that are tried: those beyond seldom work where the first do not."""

_NETWORK_BITS: Final = {4: 16, 6: 32}
"""Two peers whose addresses differ in these belong to different networks."""

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")

_NEAR_BITS: Final = {4: 24, 6: 48}
"""A peer whose address does not differ in these from the candidate may be a neighbour, who passes
no firewall: one home has a prefix of 48 to 64 bits."""


@dataclass(frozen=True)
class DialServer:
    """A connected peer that may be asked, and its address."""

    peer: PeerId
    host: str


@dataclass(frozen=True)
class DialQuestion:
    """To one server, about one address."""

    server: DialServer
    candidate: str


class DialOutcome(Enum):
    """What came of a question."""

    PROVED = "proved"
    """The nonce came back, by a new connection from outside."""
    FAILED = "failed"
    """The server says that it could not connect."""
    NO_ANSWER = "no answer"
    """It refuses, does not speak the protocol, or says what is not so: it proves nothing."""


def host_of(address: str) -> str:
    """Return the host in a multiaddr."""
    return address.split("/")[2]


def family_of(host: str) -> str:
    """Return ``ip4`` or ``ip6``."""
    return "ip6" if ":" in host else "ip4"


def network_of(host: str) -> str:
    """Return the network that a server belongs to."""
    return _prefix(host, _NETWORK_BITS)


def is_global(host: str) -> bool:
    """Whether an address is one of the Internet; False for what is no address.

    And for IPv6 addresses that lead to an IPv4 address, which may be a private one.
    """
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return False
    if found.version == 6 and (found.ipv4_mapped or found.sixtofour or found in _NAT64):
        return False
    return found.is_global and not found.is_multicast


def can_prove(server: DialServer, candidate: str) -> bool:
    """Whether a server's dial says anything about an address: it is of the family, and elsewhere.

    One of the other family may reach both; but it may also lack that family, so it is not asked.
    """
    here = host_of(candidate)
    return family_of(here) == family_of(server.host) and (
        _prefix(here, _NEAR_BITS) != _prefix(server.host, _NEAR_BITS)
    )


def _prefix(host: str, bits: dict[int, int]) -> str:
    found = ipaddress.ip_address(host)
    return str(ipaddress.ip_network(f"{host}/{bits[found.version]}", strict=False))


@dataclass
class _Case:
    """What is known of one address."""

    proofs: set[str] = field(default_factory=set)
    """Networks of the servers that proved it."""
    failures: int = 0
    asked: Counter[PeerId] = field(default_factory=Counter)
    waiting: dict[PeerId, DialQuestion] = field(default_factory=dict)


class Inquiry:
    """One round of questions about the addresses of one family."""

    def __init__(self, candidates: Sequence[str]) -> None:
        self.candidates = tuple(dict.fromkeys(candidates))[:CANDIDATES_MAX]
        self._cases = {each: _Case() for each in self.candidates}
        self._useless: set[PeerId] = set()

    def questions(self, servers: Sequence[DialServer]) -> list[DialQuestion]:
        """Return what to ask now, of these servers, in parallel; each must be answered."""
        found = []
        for candidate, case in self._cases.items():
            if self._is_settled(candidate, servers):
                continue
            room = min(ASKED_AT_ONCE, FAILURES_MIN - case.failures) - len(case.waiting)
            for server in self._left(candidate, servers)[: max(0, room)]:
                question = case.waiting[server.peer] = DialQuestion(server, candidate)
                case.asked[server.peer] += 1
                found.append(question)
        return found

    def answered(self, question: DialQuestion, outcome: DialOutcome) -> bool:
        """Take in what came of a question; False: it is none of this inquiry's."""
        case, server = self._cases.get(question.candidate), question.server
        if case is None or case.waiting.get(server.peer) is not question:
            return False  # an equal question of an earlier inquiry says how it was then
        del case.waiting[server.peer]
        if outcome is DialOutcome.PROVED:
            case.proofs.add(network_of(server.host))
        elif outcome is DialOutcome.FAILED:
            case.failures += 1
        else:
            self._useless.add(server.peer)
        return True

    @property
    def is_sure(self) -> bool:
        """Whether enough networks have proved one address."""
        return any(len(case.proofs) >= PROOFS_MIN for case in self._cases.values())

    def proved(self, servers: Sequence[DialServer]) -> list[str]:
        """Return the addresses that others can dial, in the order of the candidates."""
        return [each for each in self.candidates if self._is_proved(each, servers)]

    def verdict(self, servers: Sequence[DialServer]) -> Reachability | None:
        """Return the verdict; None while answers that may change it are still to come."""
        if self.proved(servers):
            return Reachability.PUBLIC
        if all(self._has_failed(each, servers) for each in self.candidates):
            return Reachability.HIDDEN if self.candidates else Reachability.UNKNOWN
        return Reachability.UNKNOWN if self.is_over(servers) else None

    def is_over(self, servers: Sequence[DialServer]) -> bool:
        """Whether there is nothing left to ask, and no answer to wait for."""
        return all(
            self._is_settled(each, servers) or not (case.waiting or self._left(each, servers))
            for each, case in self._cases.items()
        )

    def _left(self, candidate: str, servers: Sequence[DialServer]) -> list[DialServer]:
        """Return the servers that may still be asked, first those of networks not heard from."""
        case = self._cases[candidate]
        able = self._able(candidate, servers)
        times = ASKED_TWICE if len(able) < FAILURES_MIN and not case.proofs else 1
        left = [
            each
            for each in able
            if each.peer not in case.waiting
            and case.asked[each.peer] < times
            and network_of(each.host) not in case.proofs
        ]
        busy = Counter(network_of(each.host) for each in able if case.asked[each.peer])
        return sorted(left, key=lambda each: (case.asked[each.peer], busy[network_of(each.host)]))

    def _able(self, candidate: str, servers: Sequence[DialServer]) -> list[DialServer]:
        return [
            each
            for each in servers
            if each.peer not in self._useless and can_prove(each, candidate)
        ]

    def _is_proved(self, candidate: str, servers: Sequence[DialServer]) -> bool:
        case = self._cases[candidate]
        is_alone = not case.waiting and not self._left(candidate, servers)
        return len(case.proofs) >= PROOFS_MIN or (bool(case.proofs) and is_alone)

    def _has_failed(self, candidate: str, servers: Sequence[DialServer]) -> bool:
        case = self._cases[candidate]
        if case.proofs or case.failures < FAILURES_OF_FEW:
            return False
        is_alone = not case.waiting and not self._left(candidate, servers)
        return case.failures >= FAILURES_MIN or is_alone

    def _is_settled(self, candidate: str, servers: Sequence[DialServer]) -> bool:
        return self._is_proved(candidate, servers) or self._has_failed(candidate, servers)


class ReachStage(Enum):
    """Where a peer stands for one family of addresses."""

    UNKNOWN = "unknown"
    ASKING = "asking"
    PUBLIC = "public"
    HIDDEN = "hidden"


PUBLIC_AGAIN_S = 1800.0
"""How long a proof counts; go-libp2p asks again after an hour."""

HIDDEN_AGAIN_S = 180.0
"""How soon a hidden peer asks again: its owner may just have opened the port, and waits. So does
one that is public by the word of a single network."""

UNKNOWN_AGAIN_S = 10.0
"""How soon to try again where nobody could say."""

NEWS_AGAIN_S = 5.0
"""Between two inquiries at least, whatever others claim to see."""

LAPSE_S = 30.0
"""For which a verdict that is due again counts while nobody can say."""


class FamilyReach:
    """Whether others can dial this peer's addresses of one family.

    ``UNKNOWN → ASKING → PUBLIC | HIDDEN | UNKNOWN``, and from any of them to ASKING again. While
    others are asked again the former verdict holds, unless this machine has moved.
    """

    def __init__(self) -> None:
        self.verdict = Reachability.UNKNOWN
        self.proved: tuple[str, ...] = ()
        """Addresses that others can dial."""
        self.inquiry: Inquiry | None = None
        self._asked: tuple[str, ...] = ()
        """The candidates of the latest inquiry."""
        self._due_at = self._not_before = -inf
        self._lapses_at = inf
        self._is_doubted = False
        """Whether the inquiry under way began before a reason to ask again."""

    @property
    def stage(self) -> ReachStage:
        """Where this peer stands."""
        return ReachStage.ASKING if self.inquiry else ReachStage(self.verdict.value)

    def look(
        self, now: float, candidates: Sequence[str], servers: Sequence[DialServer]
    ) -> list[DialQuestion]:
        """Return what to ask now; starts an inquiry when one is due, or there is a new address."""
        if self.inquiry is None:
            wanted = tuple(dict.fromkeys(candidates))[:CANDIDATES_MAX]
            is_new = bool(set(wanted) - set(self._asked))
            is_able = any(can_prove(each, it) for it in wanted for each in servers)
            if not (is_able and now >= self._not_before and (is_new or now >= self._due_at)):
                if now >= self._lapses_at:
                    self._conclude(Reachability.UNKNOWN, ())
                return []
            self.inquiry, self._asked, self._is_doubted = Inquiry(wanted), wanted, False
        return self.inquiry.questions(servers)

    def answered(
        self,
        now: float,
        question: DialQuestion,
        outcome: DialOutcome,
        servers: Sequence[DialServer],
    ) -> None:
        """Take in an answer, and draw the conclusion if there is one."""
        inquiry = self.inquiry
        if inquiry is None or not inquiry.answered(question, outcome):
            return  # to an inquiry that a move has ended
        found, is_over = inquiry.verdict(servers), inquiry.is_over(servers)
        if found is Reachability.PUBLIC:
            self._conclude(found, tuple(inquiry.proved(servers)))
        elif found is Reachability.HIDDEN and is_over and not self._is_doubted:
            self._conclude(found, ())
        if is_over:
            self.inquiry = None
            self._not_before = now + NEWS_AGAIN_S
            is_sure = found is Reachability.PUBLIC and inquiry.is_sure
            again_s = PUBLIC_AGAIN_S if is_sure else HIDDEN_AGAIN_S
            if found not in (Reachability.PUBLIC, Reachability.HIDDEN):
                again_s = UNKNOWN_AGAIN_S
            else:
                self._lapses_at = now + again_s + LAPSE_S
            self._due_at = now + again_s
            if self._is_doubted:
                self._due_at = self._not_before = now

    def doubt(self, now: float) -> None:
        """Ask again as soon as somebody can be asked: all connections were lost, for example.

        An inquiry under way is finished first, but proves nobody hidden.
        """
        self._due_at = min(self._due_at, now)
        self._is_doubted = self.inquiry is not None

    def move(self, now: float) -> None:
        """Take in that this machine's addresses have changed: what was proved holds no more.

        A hidden peer stays hidden for a while: most networks have a NAT.
        """
        self.inquiry, self._asked = None, ()
        self._due_at = self._not_before = now
        self._lapses_at = now + LAPSE_S
        if self.verdict is Reachability.PUBLIC:
            self._conclude(Reachability.UNKNOWN, ())

    def _conclude(self, verdict: Reachability, proved: tuple[str, ...]) -> None:
        self.verdict, self.proved = verdict, proved
        if verdict is Reachability.UNKNOWN:
            self._lapses_at = inf


def overall(verdicts: Iterable[Reachability]) -> Reachability:
    """Return the verdict on a peer from those on its families: one open way is enough."""
    found = set(verdicts)
    for verdict in (Reachability.PUBLIC, Reachability.HIDDEN):
        if verdict in found:
            return verdict
    return Reachability.UNKNOWN
