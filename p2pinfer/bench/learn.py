"""What learning together costs: under attack, when members go, and for hiding what each learned."""

import os
import statistics
import time
from typing import Any, Final

import numpy as np

from p2pinfer.core.sums import SumMember, default_threshold, encrypted_bytes, share_bytes
from sim.learning import ATTACKS, LearningRun, LearningScenario, run_learning

NUMBERS_MAX: Final = 1 << 24

PLAIN_BYTES: Final = 2
"""Of a number in an update that is not hidden."""


def learn_bench(seeds: int, rounds: int, members: int, numbers: int) -> dict[str, Any]:
    """Measure and return what ``p2pinfer bench learn`` prints.

    Args:
        seeds: tasks of each kind; the medians count.
        rounds: of each task.
        members: honest ones.
        numbers: of an update.

    Returns:
        The honest members' loss at the end, in parts of that of a task without trouble, for each
        attack of one more member, for a member that vanishes, and for one that misses every
        deadline; and how long hiding an update takes, and how much longer it gets.
    """
    kinds: dict[str, dict[str, Any]] = {
        **{
            attack: {"members": members + 1, "poisoners": 1, "attack": attack} for attack in ATTACKS
        },
        "death": {"members": members, "deaths": 1},
        "slow": {"members": members, "slow": 1},
    }
    ratios: dict[str, list[float]] = {name: [] for name in kinds}
    learned, agreed = [], True
    for seed in range(1, seeds + 1):
        calm = _run(rounds, seed, members=members)
        learned.append(calm.loss_after / calm.loss_before)
        for name, kind in kinds.items():
            found = _run(rounds, seed, **kind)
            ratios[name].append(found.loss_after / calm.loss_after)
            agreed &= len(found.children) == 1 and not found.failed
    return {
        "rounds": rounds,
        "members": members,
        "seeds": seeds,
        "loss_left": round(statistics.median(learned), 3),
        "loss_ratio": {name: round(statistics.median(each), 3) for name, each in ratios.items()},
        "loss_ratio_worst": {name: round(max(each), 3) for name, each in ratios.items()},
        "all_agree": agreed,
        "hiding": _hiding(members, numbers),
    }


def _run(rounds: int, seed: int, **changes: Any) -> LearningRun:
    return run_learning(LearningScenario(rounds=rounds, seed=seed, **changes))


def _hiding(members: int, numbers: int) -> dict[str, Any]:
    """Take a group through one sum, and return what that costs each of them."""
    update = np.random.default_rng(1).integers(-1000, 1000, numbers)
    started_s = time.thread_time()
    plain = update.copy()
    for _ in range(members - 1):
        plain += update
    plain_s = time.thread_time() - started_s
    started_s = time.thread_time()
    least = default_threshold(members)
    group = [SumMember(bytes(32), members, least, me, numbers, os.urandom) for me in range(members)]
    hellos = {me: each.hello for me, each in enumerate(group)}
    for each in group:
        each.meet(hellos)
    for me, each in enumerate(group):
        for other, giver in enumerate(group):
            if other != me:
                each.take(other, giver.public, giver.sealed_for(me))
    for each in group:
        each.close(range(members))
    keys_s = time.thread_time() - started_s
    started_s = time.thread_time()
    updates = {me: each.encrypt(update) for me, each in enumerate(group)}
    for each in group:
        each.add(updates)
    who = range(least)
    shares = {me: group[me].share(who) for me in who}
    for each in group:
        assert (each.open(shares) == plain).all()
    sum_s = time.thread_time() - started_s
    return {
        "numbers": numbers,
        "size_ratio": round(encrypted_bytes(numbers) / (PLAIN_BYTES * numbers), 2),
        "share_size_ratio": round(share_bytes(numbers) / (PLAIN_BYTES * numbers), 2),
        "keys_s": round(keys_s / members, 3),
        "sum_s": round(sum_s / members, 3),
        "sum_s_per_million": round(sum_s / members / numbers * 1e6, 3),
        "times_of_plain": round(sum_s / max(plain_s, 1e-9)),
    }
