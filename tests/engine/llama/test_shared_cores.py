"""Two engines of one machine that take as many threads as they may, each in its turn."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import trio

from p2pinfer.core.limits import BLOCK_ROWS
from p2pinfer.core.regimes import Regime
from p2pinfer.engine.llama.engine import LocalStage, open_stage
from tests.support.fake_engines import submit
from tests.support.whole import open_model

pytestmark = pytest.mark.real

WAIT_S_MAX = 300.0

THREE_CORES = """
import sys
if "p2pinfer.engine.llama.worker" in sys.orig_argv:
    from p2pinfer.engine import cores
    from p2pinfer.engine.llama import candidate
    cores.engine_cores = lambda: [0, 1, 2]
    candidate.measured = lambda _, choices: [1 / each.threads for each in choices]
"""
"""Python runs it first: a machine on which each thread pays."""


async def talk(engine: LocalStage) -> bytes:
    """Read a prompt past 512 positions, and go on row by row."""
    rows = np.random.default_rng(1).standard_normal((576 + 12, engine.width)).astype("<f4")
    cells = engine.open(engine.end)
    waiting = [
        submit(cells, at, rows[at : at + BLOCK_ROWS].tobytes(), regime=Regime.BLOCK)
        for at in range(0, 576, BLOCK_ROWS)
    ]
    waiting += [
        submit(cells, at, rows[at : at + 1].tobytes(), regime=Regime.NARROW)
        for at in range(576, len(rows))
    ]
    found = b"".join([(await each.wait()).rows for each in waiting])
    cells.close()
    return found


async def test_engines_that_share_cores_compute_the_same(
    default_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever number of threads is left to them for a decode."""
    (tmp_path / "sitecustomize.py").write_text(THREE_CORES)
    found = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(found))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    path = open_model(default_model, tmp_path).stage(10, 12)
    answers: list[bytes] = []

    async def one(engine: LocalStage) -> None:
        answers.append(await talk(engine))

    with trio.fail_after(WAIT_S_MAX):
        async with open_stage(path, 10, sessions=1, context=700, threads=None) as first:
            await one(first)  # with three threads
            async with (
                open_stage(path, 10, sessions=1, context=700, threads=None) as second,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(one, first)
                nursery.start_soon(one, second)
    assert len(answers) == 3
    assert len(set(answers)) == 1
    check_files(path)


def check_files(path: Path) -> None:
    """Check what was chosen, and that the engines shared cores."""
    report = json.loads(Path(f"{path}.probe-upto3.json").read_text())
    used = report["probe"]["settings"]
    assert (used["threads"], used["flash_attention"]) == (3, False)  # flash splits single rows
    (folder,) = Path(os.environ["TMPDIR"]).glob("p2pinfer-cores-*")
    assert {each.name for each in folder.iterdir()} >= {"core-0", "core-1", "core-2"}
