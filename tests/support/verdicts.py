"""The probe's verdicts on slices: of the layers that it runs, and of all of them.

``python -m tests.support.verdicts REPACK SLICE…`` prints both as JSON. It is a process of its own
because ggml reads ``GGML_CPU_TILED_MM`` once: workers set it for models with experts.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from p2pinfer.engine.gguf.layer_kinds import layers_to_probe
from p2pinfer.engine.gguf.reader import read_header
from p2pinfer.engine.llama.binding import Settings, Slice
from p2pinfer.engine.llama.probe import Probe
from p2pinfer.engine.llama.trial import CONTEXT, try_settings

Verdict = tuple[bool, bool] | None
"""Whether the regimes agree, and blocks are exact; None if the settings are not exact."""


def verdicts(path: Path, settings: Settings) -> tuple[Verdict, Verdict]:
    """Try settings on a slice's first layers that show all kinds, and on all layers."""
    header = read_header(path)
    layers = layers_to_probe(header, 0), layers_to_probe(header, 0, by_type=False)
    load = partial(_load, path)
    some = try_settings(load, settings, tokens=False, layers=layers)
    every = try_settings(load, settings, tokens=False)
    return _verdict(some), _verdict(every)


def verdicts_elsewhere(paths: Sequence[Path], *, repack: bool) -> dict[str, list[Any]]:
    """Return the verdicts on slices from a process as workers are."""
    command = [sys.executable, "-m", "tests.support.verdicts", str(int(repack)), *map(str, paths)]
    environment = {**os.environ, "GGML_CPU_TILED_MM": "0"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    found: dict[str, list[Any]] = json.loads(done.stdout)
    return found


def _load(path: Path, settings: Settings) -> Slice:
    return Slice(path, logits=False, settings=settings, sessions=2, context=CONTEXT)


def _verdict(found: Probe | None) -> Verdict:
    return (found.regimes_agree, found.blocks) if found else None


if __name__ == "__main__":
    settings = Settings(repack=sys.argv[1] == "1")
    report = {name: verdicts(Path(name), settings) for name in sys.argv[2:]}
    sys.stdout.write(json.dumps(report))
