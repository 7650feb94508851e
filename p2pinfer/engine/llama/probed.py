"""Have a slice probed, in processes of their own, and keep beside it what was found out."""

from functools import partial
from pathlib import Path

from p2pinfer._setup.wheel import cpu_features
from p2pinfer.engine.cores import label
from p2pinfer.engine.frames import PartConfig
from p2pinfer.engine.gguf.layer_kinds import kinds_digest
from p2pinfer.engine.gpu import Gpu
from p2pinfer.engine.llama.binding import build_fingerprint
from p2pinfer.engine.llama.candidate import attempt, measured
from p2pinfer.engine.llama.core_shares import shares_folder
from p2pinfer.engine.llama.memory import available_bytes, mib
from p2pinfer.engine.llama.probe import Probe, Tries, probe
from p2pinfer.engine.llama.speeds import measured_once


def probed(part: PartConfig, named: int | None, most: int, gpu: Gpu | None = None) -> Probe:
    """Return how a slice computes here; raises as ``probe``.

    Args:
        part: the slice.
        named: how many threads it runs with; None: as many as make it faster.
        most: how many these may be.
        gpu: where to compute rather than on the CPU.
    """
    threads, is_most, path = named or most, named is None, Path(part.path)
    name = label(threads, is_most=is_most)
    suffix = gpu.suffix if gpu else ""
    speeds = f"speeds-{kinds_digest(path, layers_only=True)}-{name}{suffix}.json"
    shared = shares_folder()
    on = gpu.fingerprint if gpu else ""
    here = f"{build_fingerprint()} {cpu_features()}" + (f" {on}" if gpu else "")
    return probe(
        Tries(
            partial(attempt, part, device=on),
            partial(
                measured_once,
                partial(measured, part),
                [folder / speeds for folder in (path.parent, shared) if folder],
                here,
            ),
        ),
        threads,
        Path(f"{part.path}.probe-{name}{suffix}.json"),
        kinds_digest(path) + suffix,
        is_most=is_most,
        gpu=gpu,
        why_not_cpu=_why_not_cpu(path) if gpu else "",
        shared=shared,
    )


def _why_not_cpu(path: Path) -> str:
    """Say that a slice which was planned for a GPU's memory does not fit into the machine's."""
    needed, free = path.stat().st_size, available_bytes()
    if needed <= free:
        return ""
    return f"the layers take {mib(needed)} of memory, and {mib(free)} are free"
