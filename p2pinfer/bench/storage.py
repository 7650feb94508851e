"""What a model's code costs: computing parity, and rebuilding what is lost, on one core."""

import hashlib
import statistics
import time
from collections.abc import Callable
from typing import Any

from blake3 import blake3

from p2pinfer.core.erasure import encode, rebuild
from p2pinfer.core.manifest import CHUNK_BYTES
from p2pinfer.core.stripes import DATA_SHARES, PARITY_SHARES


def storage_bench(rounds: int, lost: int) -> dict[str, Any]:
    """Measure and return what ``p2pinfer bench storage`` prints.

    Args:
        rounds: of one stripe each; the median counts.
        lost: data shares that are rebuilt.

    Returns:
        MB of data a second of processor time that are encoded, and that are read to rebuild the
        lost shares; and both in parts of what this core hashes with SHA-256.
    """
    data = [blake3(bytes([n])).digest(length=CHUNK_BYTES) for n in range(DATA_SHARES)]
    parity = encode(data, PARITY_SHARES)
    shares = dict(enumerate([*data, *parity]))
    left = {row: share for row, share in shares.items() if row >= lost}
    gone = list(range(lost))

    def decode() -> None:
        found = rebuild(DATA_SHARES, PARITY_SHARES, left, gone, CHUNK_BYTES)
        assert [found[row] for row in gone] == data[:lost]

    steps: dict[str, Callable[[], object]] = {
        "sha256": lambda: [hashlib.sha256(share).digest() for share in data],
        "encode": lambda: encode(data, PARITY_SHARES),
        "rebuild": decode,
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.thread_time()
            step()
            seconds[name].append(time.thread_time() - start)
    size = DATA_SHARES * CHUNK_BYTES / 1e6
    ratios = {
        name: [hashed / took for hashed, took in zip(seconds["sha256"], each, strict=True)]
        for name, each in seconds.items()
    }
    return {
        "shares": f"{DATA_SHARES}+{PARITY_SHARES}",
        "lost": lost,
        "rounds": rounds,
        "mb_per_s": {name: round(size / statistics.median(each)) for name, each in seconds.items()},
        "mb_per_s_best": {name: round(size / min(each)) for name, each in seconds.items()},
        "ratio_to_sha256": {
            name: round(statistics.median(each), 3)
            for name, each in ratios.items()
            if name != "sha256"
        },
    }
