"""From circuits to direct connections, behind the NATs that homes have."""

import logging
import os
from itertools import combinations_with_replacement
from typing import Any

import pytest

from tests.support.natlab.internet import Internet
from tests.support.natlab.nats import ADDRESS, ENDPOINT_INDEPENDENT, KINDS
from tests.support.natlab.punchers import Attempt, attempt

log = logging.getLogger("natlab")

PAIRS = list(combinations_with_replacement(KINDS, 2))
RUNS = int(os.environ.get("P2PINFER_PUNCH_RUNS", "4"))
DELAY_MS = 25.0
"""Of each NAT's link: 100 ms there and back between two homes."""


def punch(internet: Internet, one: dict[str, Any], other: dict[str, Any]) -> Attempt:
    """Let a host behind one NAT call one behind another."""
    hosts = []
    for number, (name, options) in enumerate((("a", one), ("b", other))):
        nat = internet.nat(f"n{name}", f"5.5.5.1{number}", delay_ms=DELAY_MS, **options)
        hosts.append(internet.host(name, f"10.{number}.0.2", behind=nat))
    return attempt(internet, *hosts)


def can_punch(*options: dict[str, Any]) -> bool:
    """Whether two such NATs can be opened for each other.

    Where one shows each place another port, the other must not look at ports.
    """
    hard = [each for each in options if each.get("mapping", ENDPOINT_INDEPENDENT) in NARROW]
    if len(hard) == 2:
        return False
    others = [each for each in options if each not in hard]
    return not hard or others[0].get("filtering") in (ADDRESS, ENDPOINT_INDEPENDENT)


NARROW = {each["mapping"] for each in KINDS.values() if "mapping" in each}


def test_two_homes_punch(internet: Internet) -> None:
    """At the first try; then nothing of what they say crosses the relay."""
    found = punch(internet, {}, {})
    assert found.is_direct
    assert found.statistics.punched == (1, 0, 0)
    assert found.bytes_relayed < 1000


@pytest.mark.long
@pytest.mark.parametrize("run", range(RUNS))
@pytest.mark.parametrize(("one", "other"), PAIRS, ids=map(" - ".join, PAIRS))
def test_every_pair_that_can_punch_does(internet: Internet, one: str, other: str, run: int) -> None:
    """Either of them as the caller; the others talk through the relay soon."""
    pair = (one, other) if run % 2 else (other, one)
    found = punch(internet, KINDS[pair[0]], KINDS[pair[1]])
    log.info("%s | %s | %s | %.2f", *pair, found.statistics, found.waited_s)
    assert found.is_direct is can_punch(KINDS[one], KINDS[other])
