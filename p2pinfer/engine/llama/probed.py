"""Have a slice probed, in processes of their own, and keep beside it what was found out."""

from functools import partial
from pathlib import Path

from p2pinfer._setup.wheel import cpu_features
from p2pinfer.engine.cores import label
from p2pinfer.engine.frames import PartConfig
from p2pinfer.engine.gguf.layer_kinds import kinds_digest
from p2pinfer.engine.llama.binding import build_fingerprint
from p2pinfer.engine.llama.candidate import attempt, measured
from p2pinfer.engine.llama.probe import Probe, Tries, probe
from p2pinfer.engine.llama.speeds import measured_once


def probed(part: PartConfig, named: int | None, most: int) -> Probe:
    """Return how a slice computes here; raises as ``probe``.

    Args:
        part: the slice.
        named: how many threads it runs with; None: as many as make it faster.
        most: how many these may be.
    """
    threads, is_most, path = named or most, named is None, Path(part.path)
    name = label(threads, is_most=is_most)
    speeds = path.with_name(f"speeds-{kinds_digest(path, layers_only=True)}-{name}.json")
    here = f"{build_fingerprint()} {cpu_features()}"
    return probe(
        Tries(
            partial(attempt, part), partial(measured_once, partial(measured, part), speeds, here)
        ),
        threads,
        Path(f"{part.path}.probe-{name}.json"),
        kinds_digest(path),
        is_most=is_most,
    )
