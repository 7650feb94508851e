"""``p2pinfer bench sums``."""

import json
import os
from typing import Annotated

from p2pinfer.cli.options import AsJson, option
from p2pinfer.cli.sizes import check_range

NUMBERS_MAX = 10_000_000
"""All members are in one process, which takes 30 bytes a number and member."""


def sums(
    *,
    numbers: Annotated[int, option("numbers", "That each member adds.")] = 165_888,
    members: Annotated[int, option("members", "Of the sum.")] = 8,
    threshold: Annotated[
        int | None, option("threshold", "Members that open it. If omitted: more than half.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add up encrypted numbers, and say what it costs each member."""
    from threadpoolctl import threadpool_limits

    from p2pinfer.bench.sums import sums_bench
    from p2pinfer.core.sums import MEMBERS_MAX, default_threshold

    check_range("numbers", numbers, 1, NUMBERS_MAX)
    check_range("members", members, 2, MEMBERS_MAX)
    opening = default_threshold(members) if threshold is None else threshold
    check_range("threshold", opening, 2, members)
    with threadpool_limits(1):
        report = sums_bench(numbers, members, opening, os.urandom)
    print(json.dumps(report, indent=None if as_json else 2))
