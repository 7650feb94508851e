"""Find out how a slice computes on this machine by running it, instead of trusting a table.

Fixed pseudo-random inputs go through the slice in several chunkings: wide, narrow and in blocks,
from the first position and past 512 KV cells, alone and beside another session, with one thread and
with the worker's. Settings are exact if every row has the same bits however it was chunked, narrow
and wide. Of the settings that are exact, those that ``speeds`` measures as the fastest are used,
with blocks if they are exact too; settings that crash are ruled out. Peers whose probes gave the
same digest are of one *numerics class*: their arithmetic agrees bit for bit.

Many kernels, most of all those of GPUs, give a row other bits in every number of rows. For these
there are *fixed* shapes, which are tried last: narrow rows run one by one, and wide ones are always
padded to 48 rows.

A peer waits for its probe before it serves, so that costs little. Rows go through as many of the
slice's first layers as have one of each kind among them (``layer_kinds``); and far into a session,
where only attention can still differ, as many as have each kind of attention. What disproves
most settings comes first, and the first contradiction ends a try. What was found out about slices
of the same kinds of layers is tried first: after a move, that is all; and of engines that start
together on one machine, one searches for the others.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from p2pinfer._setup.wheel import cpu_features
from p2pinfer.core.errors import BadModelFile, EngineError, UnsupportedModel
from p2pinfer.core.exits import NEEDS_LESS
from p2pinfer.engine.cores import label, thread_counts
from p2pinfer.engine.gpu import Gpu
from p2pinfer.engine.llama.binding import Settings, build_fingerprint
from p2pinfer.engine.llama.core_shares import in_turn

_VERSION = 8


@dataclass(frozen=True)
class Probe:
    """How a slice computes on this machine."""

    settings: Settings
    regimes_agree: bool
    """A row has the same bits narrow and wide."""
    blocks: bool
    """Blocks are exact; they seldom agree with the other two regimes."""
    numerics_class: str
    """BLAKE3 over all of the probe's outputs, 32 hexadecimal digits."""

    @classmethod
    def parse(cls, values: dict[str, Any]) -> "Probe":
        """Read back what ``asdict`` wrote; raises KeyError, TypeError or ValueError."""
        return cls(**{**values, "settings": Settings(**values["settings"])})


@dataclass(frozen=True)
class Crash:
    """The outcome of settings that ended the process that tried them."""

    how: str
    lacked_memory: bool
    """If so, another attempt may succeed."""


INEXACT = "its rows depend on how they are batched"

FASTER_SHARE = 0.9
"""Of the time of settings that are preferred to them. Less of a gain is no reason to use more
cores."""

OTHER_CLASS_SHARE = 0.75
"""The same for attention of another kind, which is another numerics class: like machines must not
differ because a measurement did."""

Attempt = Callable[[Settings], Probe | Crash | None]
"""Tries settings as ``try_settings`` does, but in a process that may crash."""

Measure = Callable[[Sequence[Settings]], Sequence[float]]
"""Measures the seconds that settings take, as ``speeds`` does; none where that crashed."""


@dataclass(frozen=True)
class Tries:
    """How settings are tried on a slice."""

    attempt: Attempt
    measure: Measure


def probe(
    tries: Tries,
    threads: int,
    cache: Path,
    kinds: str,
    *,
    is_most: bool = False,
    gpu: Gpu | None = None,
    why_not_cpu: str = "",
    shared: Path | None = None,
) -> Probe:
    """Return the cached probe of a slice, or run and cache one, with the settings ruled out.

    Args:
        tries: tries settings on the slice.
        threads: how many the worker will use.
        is_most: use fewer threads where more are not faster.
        cache: the file for the result; a result of another build or CPU is ignored.
        kinds: what slices of the same kinds of layers have in common; what one of them used here is
            kept beside ``cache``, and tried first.
        gpu: where to compute rather than on the CPU.
        why_not_cpu: a reason not to fall back on the CPU where the GPU computes nothing exactly.
        shared: a folder where all of this machine's engines keep the latter, too.

    Raises:
        UnsupportedModel: no settings give the same bits for every chunking.
        EngineError: none can be run: llama.cpp crashes, or memory runs out.
    """
    key = _key(threads)
    if gpu:
        key += f" {gpu.fingerprint}{' alone' if gpu.is_named else ''}"
    if kept := _known(cache, key):
        return kept.probe
    name = f"kinds-{kinds}-{label(threads, is_most=is_most)}.json"
    alike = [folder / name for folder in (cache.parent, shared) if folder]
    search = partial(
        _search, tries, threads, key, is_most=is_most, gpu=gpu, why_not_cpu=why_not_cpu
    )
    with in_turn(name):  # of engines that start together, one searches
        known = next(filter(None, (_known(path, key) for path in alike)), None)
        if known is None:
            return search([cache, *alike])
    found = tries.attempt(known.settings)
    if not isinstance(found, Probe):  # it was true of another slice; here all are tried
        return search([cache, *alike])
    _keep(known.report | {"probe": asdict(found)}, [cache, *alike])
    return found


def keep(found: Probe, threads: int, cache: Path) -> None:
    """Keep what nobody searched for: a slice whose file it is opens with those settings."""
    report = {"key": _key(threads), "probe": asdict(found), "ruled_out": [], "measured_s": []}
    cache.write_text(json.dumps(report))


def _key(threads: int) -> str:
    return f"{_VERSION} {threads} {build_fingerprint()} {cpu_features()}"


def _search(
    tries: Tries,
    threads: int,
    key: str,
    paths: Sequence[Path],
    *,
    is_most: bool,
    gpu: Gpu | None,
    why_not_cpu: str,
) -> Probe:
    """Try all settings, and keep in files what was found; raises as ``probe``."""
    search = _Search(tries.attempt)
    found, times = None, list[tuple[Settings, float]]()
    if gpu:
        found, times = search.on_gpu(gpu, tries.measure, threads, why_not_cpu)
    if found is None:
        found, times = search.choose(tries.measure, threads, is_most=is_most)
    if not any(crash.lacked_memory for crash in search.crashes):
        report = {
            "key": key,
            "probe": asdict(found),
            "build": build_fingerprint(),
            "cpu": cpu_features(),
            "gpu": str(gpu) if gpu else "",
            "ruled_out": [{"settings": asdict(each), "why": why} for each, why in search.ruled_out],
            "measured_s": [[asdict(each), seconds] for each, seconds in times],
        }
        _keep(report, paths)
    return found


def _keep(report: dict[str, Any], paths: Sequence[Path]) -> None:
    for path in paths:
        with suppress(OSError):  # a full disk: the slice is probed again next time
            path.write_text(json.dumps(report))


class _Search:
    """Which settings are used, and why others are not."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self.ruled_out: list[tuple[Settings, str]] = []
        self.crashes: list[Crash] = []

    def choose(
        self, measure: Measure, threads: int, *, is_most: bool
    ) -> tuple[Probe, list[tuple[Settings, float]]]:
        """Return the fastest exact settings, and what was measured; raises as ``probe``.

        What is faster than the first exact settings is tried only then: a try takes longer.
        """
        first = self._first_exact(1 if is_most else threads)
        counts = thread_counts(threads) if is_most else [threads]
        kinds = [first.settings]
        if first.settings.flash_attention and not first.settings.values_bf16:
            kinds.append(replace(first.settings, flash_attention=False))
        choices = [replace(kind, threads=count) for kind in kinds for count in counts]
        times = measure(choices) if len(choices) > 1 else []
        if len(times) != len(choices):  # there is no choice, or measuring crashed
            return first, []
        left = measured = list(zip(choices, times, strict=True))
        while (best := fastest(left)) != first.settings:
            if found := self._try(best):
                return found, measured
            kind = replace(best, threads=1)
            left = [m for m in left if m[0] == first.settings or replace(m[0], threads=1) != kind]
        return first, measured

    def on_gpu(
        self, gpu: Gpu, measure: Measure, threads: int, why_not_cpu: str
    ) -> tuple[Probe | None, list[tuple[Settings, float]]]:
        """Return how the GPU computes the slice, and what was measured; None to use the CPU.

        Raises:
            UnsupportedModel, EngineError: it cannot, and the CPU must not be used instead.
        """
        found = next(filter(None, map(self._try, _gpu_candidates(gpu.name))), None)
        if found is None:
            if gpu.is_named or why_not_cpu:
                raise _gpu_refusal(gpu, self.crashes, why_not_cpu)
            return None, []
        if gpu.is_named or why_not_cpu:
            return found, []
        choices = [Settings(threads, repack=False), found.settings]
        times = measure(choices)
        if len(times) != len(choices) or times[1] > times[0]:
            why = "is slower than the CPU" if times else "could not be measured against the CPU"
            self.ruled_out.append((found.settings, f"{gpu} {why}"))
            return None, []
        return found, list(zip(choices, times, strict=True))

    def _first_exact(self, threads: int) -> Probe:
        for settings in _candidates(threads):
            if found := self._try(settings):
                return found
        raise _refusal(self.crashes, len(self.ruled_out))

    def _try(self, settings: Settings) -> Probe | None:
        try:
            found = self._attempt(settings)
        except BadModelFile as error:
            if not settings.values_bf16:
                raise
            # Latent attention takes V from the cells of K, which llama.cpp keeps in one type.
            self.ruled_out.append((settings, str(error)))
            return None
        if isinstance(found, Probe):
            return found
        self.ruled_out.append((settings, found.how if found else INEXACT))
        if found:
            self.crashes.append(found)
        return None


def _candidates(threads: int) -> Iterator[Settings]:
    """Yield settings, those to be preferred first."""
    usual = Settings(threads)
    for kind in (
        usual,
        replace(usual, flash_attention=False),
        replace(usual, values_bf16=True),
        replace(usual, fixed=True),
    ):
        yield from (kind, replace(kind, repack=False))


def _gpu_candidates(device: str) -> Iterator[Settings]:
    for flash_attention in (True, False):
        yield Settings(device=device, flash_attention=flash_attention)


def _gpu_refusal(
    gpu: Gpu, crashes: Sequence[Crash], why_not_cpu: str
) -> EngineError | UnsupportedModel:
    why = crashes[0].how if crashes else INEXACT
    text = f"{gpu} cannot be used for this model: {why}"
    advice = f"; nor can the CPU: {why_not_cpu}" if why_not_cpu else "; to use the CPU: --gpu off"
    return (EngineError if crashes else UnsupportedModel)(text + advice)


def fastest(measured: Sequence[tuple[Settings, float]]) -> Settings:
    """Return the settings with the least time, where that is clearly less than of those before."""
    (best, least), *others = measured
    for settings, seconds in others:
        is_alike = settings.flash_attention == best.flash_attention
        if seconds < (FASTER_SHARE if is_alike else OTHER_CLASS_SHARE) * least:
            best, least = settings, seconds
    return best


def _refusal(crashes: Sequence[Crash], tried: int) -> EngineError | UnsupportedModel:
    if any(crash.lacked_memory for crash in crashes):
        return EngineError(f"memory ran out while the slice was tried: {NEEDS_LESS}")
    if len(crashes) == tried:
        return EngineError(
            f"llama.cpp crashes here with every setting: {crashes[0].how}; "
            "to have it compiled and tried again, type: make clean setup"
        )
    return UnsupportedModel(
        "llama.cpp does not compute this model the same way twice on this machine: its rows "
        "depend on how they are batched, so no peer could check them"
        + (f" (and some settings crash: {crashes[0].how})" if crashes else "")
    )


@dataclass(frozen=True)
class _Known:
    """What a file keeps of a probe."""

    probe: Probe
    report: dict[str, Any]

    @property
    def settings(self) -> Settings:
        return self.probe.settings


def _known(path: Path, key: str) -> _Known | None:
    """Read what a probe of this build, CPU and version kept; None if there is none."""
    try:
        data = json.loads(path.read_text())
        if data["key"] == key:
            return _Known(Probe.parse(data["probe"]), data)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no result yet, or one that another version wrote
    return None
