"""Pictures of a run, and one page that holds them with its numbers."""

import base64
import html
import io
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from p2pinfer.core.errors import UserError
from sim.report import lines, summary
from sim.run import Outcome

SIZE_INCHES = (9, 4.2)

STYLE = (
    "body{font:15px/1.5 system-ui;max-width:960px;margin:2em auto;color:#222}"
    "img{width:100%}pre{background:#f5f5f5;padding:1em;overflow-x:auto}"
)


def check_pictures() -> None:
    """Raise UserError where no pictures can be made, before a run that is to end with them."""
    if find_spec("matplotlib") is None:
        raise UserError(
            "pictures need matplotlib: pip install 'p2pinfer[sim]', or leave --out away"
        )


def write_page(outcome: Outcome, path: Path) -> None:
    """Write one self-contained HTML page; matplotlib must be there.

    Raises:
        OSError: the page cannot be written.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    shown = []
    for title, paint in PICTURES.items():
        figure, axes = plt.subplots(figsize=SIZE_INCHES, layout="constrained")
        paint(outcome, axes)
        axes.set_title(title)
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=110)
        plt.close(figure)
        image = base64.b64encode(data.getvalue()).decode()
        shown.append(f'<img alt="{html.escape(title)}" src="data:image/png;base64,{image}">')
    numbers = summary(outcome)
    about, *rest = lines(numbers)
    page = (
        f"<!doctype html><meta charset=utf-8><title>{html.escape(about)}</title>"
        f"<style>{STYLE}</style><h1>{html.escape(about)}</h1>"
        f"<pre>{html.escape(chr(10).join(rest))}</pre>{''.join(shown)}"
    )
    path.write_text(page)


def _paint_map(outcome: Outcome, axes: Any) -> None:
    """How many peers serve each layer at each moment."""
    import numpy as np

    samples, model = outcome.record.samples, outcome.scenario.model
    holders = np.zeros((model.layers, len(samples)))
    for column, sample in enumerate(samples):
        for held in sample.held.values():
            holders[held.first : held.end, column] += 1
    bounds = model.keep, model.layers - model.keep  # requesters run the others themselves
    shape = (samples[0].at_s, samples[-1].at_s, bounds[1] - 0.5, bounds[0] - 0.5)
    part = holders[slice(*bounds)]
    image = axes.imshow(part, aspect="auto", extent=shape, interpolation="nearest", vmin=0)
    axes.figure.colorbar(image, label="peers that serve it")
    axes.set(xlabel="seconds", ylabel="layer")


def _paint_ranges(outcome: Outcome, axes: Any) -> None:
    """Which peer serves which layers: a row per peer, coloured by the middle of its range."""
    import numpy as np

    samples = outcome.record.samples
    peers = 1 + max((peer for sample in samples for peer in sample.held), default=0)
    middle = np.full((peers, len(samples)), np.nan)
    for column, sample in enumerate(samples):
        for peer, held in sample.held.items():
            middle[peer, column] = (held.first + held.end - 1) / 2
    # Neighbours on the picture serve much the same, so what moves stands out.
    places = [row[~np.isnan(row)] for row in middle]
    order = sorted(range(peers), key=lambda peer: float(places[peer][-1:].sum()))
    shape = (samples[0].at_s, samples[-1].at_s, peers - 0.5, -0.5)
    image = axes.imshow(
        middle[order], aspect="auto", extent=shape, interpolation="nearest", cmap="turbo"
    )
    axes.figure.colorbar(image, label="middle layer; white: not there")
    axes.set(xlabel="seconds", ylabel="peers, by their final range")
    axes.yaxis.get_major_locator().set_params(integer=True)


def _paint_throughput(outcome: Outcome, axes: Any) -> None:
    """Tokens a second, and sessions."""
    samples = outcome.record.samples
    pairs = list(pairwise(samples))
    times = [later.at_s for _, later in pairs]
    rates = [(b.tokens - a.tokens) / max(1e-9, b.at_s - a.at_s) for a, b in pairs]
    axes.plot(times, rates, label="tokens/s")
    axes.plot(times, [later.sessions for _, later in pairs], label="sessions in stages", alpha=0.6)
    axes.set(xlabel="seconds")
    axes.legend()


def _paint_waits(outcome: Outcome, axes: Any) -> None:
    """How long askers waited, as shares of all questions."""
    asked = [question for question in outcome.record.questions if not question.is_last]
    waits: dict[str, list[float | None]] = {
        "first token": [q.first_s for q in asked],
        "whole answer": [q.done_s for q in asked],
        "longest stall": [q.longest_gap_s for q in asked if q.tokens > 1],
    }
    from matplotlib.ticker import FuncFormatter, LogLocator

    for name, values in waits.items():
        known = sorted(value for value in values if value)
        if known:
            shares = [index / len(known) for index in range(len(known) + 1)]
            axes.plot([known[0], *known], shares, label=name, drawstyle="steps-post")
    axes.set(xlabel="seconds", ylabel="share that waited no longer", xscale="log")
    for which in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        which(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.grid(alpha=0.3)
    axes.legend()


def _paint_speeds(outcome: Outcome, axes: Any) -> None:
    """Tokens a second of each answer after its first token."""
    speeds = [speed for q in outcome.record.questions if (speed := q.tokens_per_s) is not None]
    if speeds:
        axes.hist(speeds, bins=30)
    else:
        axes.text(0.5, 0.5, "no answer was completed", ha="center", transform=axes.transAxes)
    axes.set(xlabel="tokens/s", ylabel="answers")


def _paint_gossip(outcome: Outcome, axes: Any) -> None:
    """Bytes that each peer sent to announce which peers serve what."""
    rates = sorted(size / outcome.virtual_s for size in outcome.gossip_bytes)
    axes.plot(rates)
    axes.set(xlabel="peers, from the quietest", ylabel="bytes/s of gossip", ylim=(0, None))


def _paint_detection(outcome: Outcome, axes: Any) -> None:
    """Audits that blamed a cheat, and wrong answers, over time."""
    wrong = [q.at_s for q in outcome.record.questions if q.outcome == "wrong"]
    for name, times in {"cheats caught": outcome.record.caught_s, "wrong answers": wrong}.items():
        at_s = [0.0, *sorted(times), outcome.virtual_s]
        counts = [*range(len(times) + 1), len(times)]
        axes.plot(at_s, counts, label=f"{name}: {len(times)}", drawstyle="steps-post")
    axes.set(xlabel="seconds", ylabel="so far", ylim=(0, None))
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend()


PICTURES: dict[str, Callable[[Outcome, Any], None]] = {
    "Peers that serve each layer": _paint_map,
    "What each peer serves": _paint_ranges,
    "Throughput": _paint_throughput,
    "Waiting": _paint_waits,
    "Speed of answers": _paint_speeds,
    "Gossip": _paint_gossip,
    "Detection": _paint_detection,
}
