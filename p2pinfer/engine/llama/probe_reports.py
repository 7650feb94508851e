"""What probes found out on this machine, read from files without loading llama.cpp."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ProbeReport:
    """The settings that one slice uses here, and those ruled out."""

    slice_name: str
    build: str
    """``build_fingerprint()`` at that time."""
    cpu: str
    """The CPU's features at that time, as its system names them."""
    used: str
    """The settings, in words."""
    ruled_out: tuple[tuple[str, str], ...]
    """Other settings in words, and why they were ruled out."""


def probe_reports(folder: Path) -> list[ProbeReport]:
    """Read the reports in a folder and below, of the newest build and CPU, by slice name."""
    found: list[tuple[int, ProbeReport]] = []
    for path in folder.rglob("*.gguf.probe-*.json"):
        try:
            report = _parse(path.name.partition(".gguf.")[0], json.loads(path.read_text()))
            found.append((path.stat().st_mtime_ns, report))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # being written, or from an older version: the slice will be probed again
    if not found:
        return []
    _, newest = max(found, key=lambda each: each[0])
    here = (newest.build, newest.cpu)
    reports = [report for _, report in found if (report.build, report.cpu) == here]
    return sorted(reports, key=lambda report: report.slice_name)


def _parse(slice_name: str, data: Mapping[str, Any]) -> ProbeReport:
    ruled_out = tuple((_words(each["settings"]), each["why"]) for each in data["ruled_out"])
    used = _words(data["probe"]["settings"])
    return ProbeReport(slice_name, data["build"], data["cpu"], used, ruled_out)


def _words(settings: Mapping[str, Any]) -> str:
    kernels = "repacked weights" if settings["repack"] else "weights as they are"
    if settings.get("device"):
        kernels = f"the GPU {settings['device']}"
    more = [
        *(["fixed numbers of rows"] if settings.get("fixed") else []),
        *(["no flash attention"] if not settings["flash_attention"] else []),
        *(["V in bfloat16"] if settings["values_bf16"] else []),
        *([f"{settings['threads']} threads"] if settings["threads"] > 1 else []),
    ]
    return ", ".join([kernels, *more])


def used_features(build: str) -> list[str]:
    """Return the CPU features that a build uses, from its fingerprint."""
    return re.findall(r"(\w+) = [1-9]", build)


def vector_features(cpu: str) -> list[str]:
    """Return those of a CPU's features that multiply matrices, and AMX's."""
    return re.findall(r"\b(?:(?:amx|avx|asimd|bf16|f16c|fma|i8mm|sve)\w*|sme2?)\b", cpu)
