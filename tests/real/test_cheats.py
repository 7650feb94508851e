"""Real stages that cheat are caught and named, honest ones never: short runs of the benchmark."""

from pathlib import Path

import pytest

from p2pinfer.bench.cheats import open_world
from p2pinfer.bench.zoo import ZOO
from p2pinfer.core.attention_fit import ATTENTION_MAX
from p2pinfer.core.trust import AuditVerdict
from p2pinfer.engine.store.store import Store
from p2pinfer.node.model_supply import open_store
from p2pinfer.node.verify import verify_file
from tests.support.commands import bench
from tests.support.tiny_models import TINY, quantise, write_tiny

pytestmark = pytest.mark.real

TRIED = ("lower quantisation", "stale KV")
"""Those that save work and look most honest; ``p2pinfer bench cheats`` tries all."""


def test_cheats_are_caught_and_honest_stages_are_not(home: Path) -> None:
    """Every cheat is caught, at the right stage; other settings cause no false alarm."""
    words = ["--trials", "1", "--checkpoints", "12", "--seed", "7", "--only", *TRIED]
    report = bench(home, "cheats", *words)
    assert [each["cheat"] for each in report["cheats"]] == list(TRIED)
    same, other = report["honest"], report["honest, another class"]
    assert (same["false_alarms"], list(same["verdicts"])) == (0, ["same bits"])
    assert same["audited_checkpoints"] >= 12
    assert (other["false_alarms"], "within bounds" in other["verdicts"]) == (0, True)
    for found in report["cheats"]:
        told = found["caught"], found["right_stage_named"], found["proven_to_others"]
        assert told == (1, 1, 1), found


OPENED = ("lower quantisation", "invented attention outputs", "K and V invented for the row")
"""As above, and the two that only K and V show; ``p2pinfer bench proofs`` tries all."""


ELSEWHERE = ("a different model: other layers", "stale KV")
"""Those that use the layers of another stage, and those whose false rows are fewest."""


def test_openings_catch_cheats_without_layers(home: Path) -> None:
    """Every cheat is caught at the right stage and step; honest rows of all stages hold."""
    words = ["--trials", "1", "--openings", "12", "--seed", "7", "--only", *OPENED]
    report = bench(home, "proofs", *words)
    honest = report["honest"]
    assert (honest["openings"], honest["false_alarms"]) == (12, 0), honest
    assert 0 < honest["worst"]["attention"] < ATTENTION_MAX
    assert honest["largest_bytes"] < 2_000_000
    steps = {each["cheat"]: each["by"] for each in report["cheats"]}
    assert steps["lower quantisation"] == ["query"]
    assert steps["invented attention outputs"] == ["attention"]
    assert "not those that the stage signed for" in steps["K and V invented for the row"][0]
    for found in report["cheats"]:
        named = found["right_stage_named"], found["right_layer_named"]
        assert (found["caught"], *named) == (1, 1, 1), found
        is_proof = found["cheat"] != "K and V invented for the row"  # nobody signed those
        assert found["proven_by_that_layer_alone"] == is_proof, found
        assert found["layers_in_a_proof"] == is_proof


def test_openings_catch_cheats_in_stages_of_different_sizes(home: Path, tmp_path: Path) -> None:
    """Seven layers leave one for the first stage, and two for the one that cheats."""
    full, model = tmp_path / "full.gguf", tmp_path / "model.gguf"
    write_tiny(TINY["llama"], full)
    quantise(full, model, "Q4_0")
    words = ["--model", str(model), "--trials", "2", "--openings", "12", "--seed", "3"]
    report = bench(home, "proofs", *words, "--only", *ELSEWHERE)
    assert report["honest"]["false_alarms"] == 0
    for found in report["cheats"]:
        named = found["right_stage_named"], found["right_layer_named"]
        proven = found["proven_by_that_layer_alone"], found["layers_in_a_proof"]
        assert (found["caught"], *named, *proven) == (2, 2, 2, 2, 1), found
        assert found["false_rows"]["answers_without"] == 0
        assert found["false_rows"]["missed_with_a_chance_up_to"] == 0


def test_honest_stages_of_a_k_quant_pass(home: Path, tmp_path: Path) -> None:
    """With mixed threads, batches, chunks and classes, on weights whose regimes differ."""
    full, model = tmp_path / "full.gguf", tmp_path / "model.gguf"
    write_tiny(TINY["llama"], full)
    quantise(full, model, "Q4_K_M")
    report = bench(home, "honest", "--model", str(model), "--checkpoints", "12", "--seed", "3")
    assert report["audited_checkpoints"] >= 12
    assert (report["false_alarms"], report["receipts_broke"]) == (0, [])
    assert report["numerics_classes"] == [2, 2, 2]
    assert set(report["verdicts"]) <= {AuditVerdict.SAME.value, AuditVerdict.CLOSE.value}


async def test_a_certificate_shows_who_cheated(default_model: Path, tmp_path: Path) -> None:
    """No peer is asked: tokens and receipts suffice for a machine that has the layers."""
    (skips,) = (cheat for cheat in ZOO if cheat.name == "a skipped layer")
    async with open_world(default_model, 5) as world:
        await world.answer()
        honest = world.certificate
        await world.answer(skips)
        cheated = world.certificate
    found = await verify_file(honest, open_store())
    assert found.held
    assert [each.held for each in found.findings] == [True] * 7
    found = await verify_file(honest, Store(tmp_path))  # without the model
    assert (found.held, found.findings[-1].held) == (True, None)
    found = await verify_file(cheated, open_store())
    assert [(each.what, each.held) for each in found.findings[-2:]] == [
        ("stage 0", True),
        ("stage 1", False),
    ]
