"""``p2pinfer bench``: measurements, printed as JSON."""

import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any

from cyclopts import App

from p2pinfer.flags import SESSIONS_MAX, AsJson, Model, Peers, check_range, option
from p2pinfer.running import run_task

app = App(name="bench", help="Measure; prints JSON.", help_format="plaintext")


@app.command
def decode(
    *,
    peers: Peers = 3,
    model: Model = "default",
    sessions: Annotated[int, option("sessions", "Also decode in this many at once.")] = 1,
    tokens: Annotated[int, option("tokens", "Tokens per answer.")] = 128,
    runs: Annotated[int, option("runs", "Interleaved runs.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Compare a local swarm with llama.cpp alone: same file, same tokens, same run."""
    from p2pinfer.bench.decode import decode_bench
    from p2pinfer.supply import model_path

    check_range("sessions", sessions, 1, SESSIONS_MAX)
    check_range("tokens", tokens, 2)  # the first one is the prompt's
    check_range("runs", runs, 1)
    path = model_path(model)
    measure = partial(decode_bench, path, peers, tokens=tokens, runs=runs, sessions=sessions)
    run_task(lambda: _print_report(measure, as_json=as_json))


@app.command
def transport(
    *,
    rounds: Annotated[int, option("rounds", "Interleaved rounds.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Compare our muxer with libp2p's own: two processes on loopback."""
    from p2pinfer.bench.transport import transport_bench

    check_range("rounds", rounds, 1)
    run_task(lambda: _print_report(partial(transport_bench, rounds), as_json=as_json))


@app.command
def fetch(
    *,
    rounds: Annotated[int, option("rounds", "Interleaved rounds.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Compare fetching parts from one and from three holders with one plain stream."""
    from p2pinfer.bench.fetch import fetch_bench

    check_range("rounds", rounds, 1)
    run_task(lambda: _print_report(partial(fetch_bench, rounds), as_json=as_json))


async def _print_report(measure: Callable[[], Awaitable[dict[str, Any]]], *, as_json: bool) -> None:
    """Measure, and print the result as JSON, on one line if a program reads it."""
    from p2pinfer.terminal import Doing

    done = Doing("Measuring …")
    try:
        report = await measure()
    finally:
        done()
    print(json.dumps(report, indent=None if as_json else 2))
