"""``p2pinfer bench storage``."""

import json
from typing import Annotated

from p2pinfer.cli.options import AsJson, option
from p2pinfer.cli.sizes import check_range


def storage(
    *,
    rounds: Annotated[int, option("rounds", "Number of interleaved rounds.")] = 15,
    lost: Annotated[int, option("lost", "Data shares to rebuild, of eight.")] = 8,
    as_json: AsJson = False,
) -> None:
    """Time the code that models are kept by: computing parity, and rebuilding what is lost."""
    from p2pinfer.bench.storage import storage_bench

    check_range("rounds", rounds, 1)
    check_range("lost", lost, 1, 8)
    print(json.dumps(storage_bench(rounds, lost), indent=None if as_json else 2))
