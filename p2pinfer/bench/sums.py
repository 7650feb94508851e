"""What an encrypted sum costs each member, in processor time and bytes: all in this process."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from p2pinfer.core.sums import NUMBER_MAX, SumMember

CONTEXT = bytes(32)
MILLION = 1_000_000
F16_BYTES = 2
"""What a number takes that nobody encrypts."""


def sums_bench(
    numbers: int, members: int, threshold: int, draw: Callable[[int], bytes]
) -> dict[str, Any]:
    """Add up random numbers, compare with the plain sum, and say what each step cost.

    Args:
        numbers: that each member adds.
        members: of the sum.
        threshold: how many open it.
        draw: where secrets and numbers come from.
    """
    spent: dict[str, float] = {}

    def timed(step: str, work: Callable[[], Any], each: int = 1) -> Any:
        started = time.process_time()
        found = work()
        spent[step] = (time.process_time() - started) / each
        return found

    def keys() -> list[SumMember]:
        found = [SumMember(CONTEXT, members, threshold, me, numbers, draw) for me in range(members)]
        hellos = {me: each.hello for me, each in enumerate(found)}
        for each in found:
            each.meet(hellos)
        for giver, one in enumerate(found):
            for taker, other in enumerate(found):
                if giver != taker:
                    other.take(giver, one.public, one.sealed_for(taker))
        for each in found:
            each.close(range(members))
        return found

    group: list[SumMember] = timed("keys_s", keys, members)
    plain = [
        np.clip(np.frombuffer(draw(2 * numbers), "<i2").astype(np.int64), -NUMBER_MAX, NUMBER_MAX)
        for _ in range(members)
    ]
    given = timed(
        "encrypt_s",
        lambda: {me: one.encrypt(plain[me]) for me, one in enumerate(group)},
        members,
    )
    who = range(threshold)
    timed("add_s", lambda: [group[me].add(given) for me in who], threshold)
    shares = timed("share_s", lambda: {me: group[me].share(who) for me in who}, threshold)
    total = timed("open_s", lambda: group[0].open(shares))
    per_million = {step: round(s * MILLION / numbers, 3) for step, s in spent.items()}
    margin = group[0].margin_bits
    return {
        "numbers": numbers,
        "members": members,
        "threshold": threshold,
        "is_exact": bool((total == np.sum(plain, axis=0)).all()),
        "margin_bits": margin and round(margin, 1),
        "times_the_size": round(len(given[0]) / (F16_BYTES * numbers), 2),
        "share_times_the_size": round(len(shares[0]) / (F16_BYTES * numbers), 2),
        "keys_bytes_a_pair": len(group[0].public) + len(group[0].sealed_for(1)),
        "processor_s_per_million_numbers": {
            step: s for step, s in per_million.items() if step != "keys_s"
        },
        "keys_processor_s": round(spent["keys_s"], 3),
    }
