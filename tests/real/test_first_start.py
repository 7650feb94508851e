"""What a first start costs: a K-quant model of 1.5 billion's width over three peers of one machine.

Figures are seconds of all cores, which another program's load hardly changes.
"""

import resource
from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.model_factory import Recipe, write_model
from tests.support.tiny_models import quantise

pytestmark = [pytest.mark.real, pytest.mark.long]

LAYERS = 10
"""Of 28: what probing costs goes by the kinds of layers, not by how many there are."""

RECIPE = Recipe(
    "qwen2",
    LAYERS,
    {
        "context_length": 32768,
        "embedding_length": 1536,
        "feed_forward_length": 8960,
        "attention.head_count": 12,
        "attention.head_count_kv": 2,
        "attention.key_length": 128,
        "attention.value_length": 128,
        "rope.dimension_count": 128,
        "rope.freq_base": 1e6,
    },
)

LOADING = "loading this machine's own layers"
"""They were probed while the peers started."""

SHARE_MAX = 2.0
"""Of a start of six processes that finds everything in place. Before only layers of different kinds
were probed, and one engine searched for all, probing cost many times as much."""


def start_cpu_s(home: Path, model: Path) -> float:
    """Ask a fresh local swarm one question; return the processor time of all its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    no_checks = ["--audit-rate", "0", "--proof-rate", "0"]
    words = ["demo", "Hello", "--model", str(model), "--max-tokens", "1", *no_checks]
    result = run(home, *words, TMPDIR=str(home / "tmp"))
    assert result.returncode == 0, result.stderr
    assert "this machine's own layers" not in result.stderr.replace(LOADING, "")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_probing_costs_little(tmp_path: Path) -> None:
    """Less than a few starts do; and nothing when the swarm starts again."""
    full, model, home = (tmp_path / name for name in ("full.gguf", "model.gguf", "home"))
    write_model(RECIPE, full)
    quantise(full, model, "Q4_K_M")
    full.unlink()
    (home / "tmp").mkdir(parents=True)
    first = start_cpu_s(home, model)
    again = start_cpu_s(home, model)
    kept = [*home.rglob("*.probe-*.json"), *home.rglob("kinds-*.json"), *home.rglob("speeds-*")]
    assert len([each for each in kept if ".probe-" in each.name]) == 5  # three stages, two ends
    for each in kept:
        each.unlink()
    probed = start_cpu_s(home, model)
    figures = {"first": first, "again": again, "probing": probed - again}
    print({f"{name}_cpu_s": round(each, 1) for name, each in figures.items()})  # noqa: T201
    assert probed - again < SHARE_MAX * again
