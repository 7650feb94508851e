"""Pictures of a run, and one page that holds them with its numbers."""

import base64
import html
import io
from collections.abc import Callable
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


def write_page(outcome: Outcome, path: Path) -> None:
    """Write one self-contained HTML page.

    Raises:
        UserError: matplotlib is not installed.
        OSError: the page cannot be written.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise UserError(
            "pictures need matplotlib: pip install 'p2pinfer[sim]', or leave --out away"
        ) from None
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
    """Who serves what: how many hold each layer at each moment."""
    import numpy as np

    samples = outcome.record.samples
    layers = outcome.scenario.model.layers
    holders = np.zeros((layers, len(samples)))
    for column, sample in enumerate(samples):
        for first, end in sample.held.values():
            holders[first:end, column] += 1
    until_s = samples[-1].at_s
    shape = (samples[0].at_s, until_s, layers - 0.5, -0.5)
    image = axes.imshow(holders, aspect="auto", extent=shape, interpolation="nearest")
    axes.figure.colorbar(image, label="peers that serve it")
    axes.set(xlabel="seconds", ylabel="layer")


def _paint_ranges(outcome: Outcome, axes: Any) -> None:
    """Which peer serves which layers: a bar per peer, coloured by where its range begins."""
    import numpy as np

    samples = outcome.record.samples
    peers = 1 + max((peer for sample in samples for peer in sample.held), default=0)
    first = np.full((peers, len(samples)), np.nan)
    for column, sample in enumerate(samples):
        for peer, (begin, _) in sample.held.items():
            first[peer, column] = begin
    shape = (samples[0].at_s, samples[-1].at_s, peers - 0.5, -0.5)
    image = axes.imshow(first, aspect="auto", extent=shape, interpolation="nearest", cmap="turbo")
    axes.figure.colorbar(image, label="first layer; white: not there")
    axes.set(xlabel="seconds", ylabel="peer")


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
    for name, values in waits.items():
        known = sorted(value for value in values if value)
        shares = [(index + 1) / len(known) for index in range(len(known))]
        axes.plot(known, shares, label=name, drawstyle="steps-post")
    axes.set(xlabel="seconds", ylabel="share that waited no longer", xscale="log")
    axes.legend()


def _paint_speeds(outcome: Outcome, axes: Any) -> None:
    """Tokens a second of each answer after its first token."""
    speeds = [speed for q in outcome.record.questions if (speed := q.tokens_per_s) is not None]
    axes.hist(speeds, bins=30)
    axes.set(xlabel="tokens/s", ylabel="answers")


def _paint_gossip(outcome: Outcome, axes: Any) -> None:
    """What each peer sent to tell who serves what."""
    rates = sorted(size / outcome.virtual_s for size in outcome.gossip_bytes)
    axes.plot(rates)
    axes.set(xlabel="peers, from the quietest", ylabel="bytes/s of gossip", ylim=(0, None))


def _paint_detection(outcome: Outcome, axes: Any) -> None:
    """Audits that blamed a cheat, and answers that were wrong, as time goes on."""
    wrong = [q.at_s for q in outcome.record.questions if q.outcome == "wrong"]
    for name, times in {"cheats caught": outcome.record.caught_s, "wrong answers": wrong}.items():
        axes.plot([0, *sorted(times)], range(len(times) + 1), label=name, drawstyle="steps-post")
    axes.set(xlabel="seconds", ylabel="so far")
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
