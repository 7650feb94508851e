"""What the verbs of ``p2pinfer bench`` print."""

import json
from collections.abc import Awaitable, Callable
from typing import Any


async def print_report(measure: Callable[[], Awaitable[dict[str, Any]]], *, as_json: bool) -> None:
    """Run a benchmark and print its report, on one line if ``as_json``."""
    from p2pinfer.cli.terminal import Spinner

    done = Spinner("Measuring …")
    try:
        report = await measure()
    finally:
        done()
    print(json.dumps(report, indent=None if as_json else 2))
