"""Engines that share a machine: a thread that waits for another yields the processor."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from p2pinfer.engine.llama.binding import build_fingerprint
from tests.support.whole import open_model

pytestmark = pytest.mark.real

RATIO_MAX = 10
"""Of processor time: 2 or 3 if waiting threads soon sleep, and 600 if they spin."""

TWO_THREADS_ON_ONE_PROCESSOR = """
import os, sys, time
from pathlib import Path
import numpy as np
from p2pinfer.engine.llama.binding import Settings, Slice, Span

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # its threads will run there too
taken = []
for threads in (1, 2):
    settings = Settings(threads)
    part = Slice(Path(sys.argv[1]), logits=False, settings=settings, sessions=1, context=256)
    row = np.ones((1, part.width), np.float32)
    part.decode([Span(0, 0, row)])
    started = time.process_time()
    for _ in range(10):
        part.decode([Span(0, 0, row)])
    taken.append(time.process_time() - started)
print(taken[1] / taken[0])
"""


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or "OPENMP" not in build_fingerprint(),
    reason="needs OpenMP, and Linux to keep both threads on one processor",
)
def test_waiting_threads_yield_the_processor(default_model: Path, tmp_path: Path) -> None:
    """Two threads on one processor take little more time than one."""
    path = open_model(default_model, tmp_path).stage(10, 12)
    command = [sys.executable, "-c", TWO_THREADS_ON_ONE_PROCESSOR, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(result.stdout) < RATIO_MAX
