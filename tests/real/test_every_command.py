"""Every command runs, at a small scale, as a person types it, and prints machine-readable output.

The list of commands is the program's own: a new command that is in neither table fails.
"""

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from cyclopts import App

from p2pinfer.cli.config_file import option_names
from p2pinfer.cli.main import app
from tests.cli import test_model, test_model_names, test_service
from tests.natlab import test_hidden_swarm
from tests.node import test_settlement
from tests.real import (
    test_bench,
    test_certificate,
    test_cheats,
    test_cli,
    test_gateway,
    test_invitations,
    test_keep,
    test_learn,
    test_networks,
    test_parts,
    test_serving,
)
from tests.support.commands import report_of, run
from tests.support.processes import Peer
from tests.support.tiny_models import TINY, quantise, write_tiny

pytestmark = pytest.mark.real

SMALL: Final = {
    "bench answers": "--model {tiny} --questions 4 --seeds 2 --tokens 8 --ways greedy t0.7-short",
    "bench constraints": "--peers 1 --tokens 18 --runs 1",
    "bench discovery": "--peers 2 --seconds 1 --cut 1 --settle 0",
    "bench evidence": "--peers 1 --tokens 34 --runs 1",
    "bench kv-root": "--peers 1 --tokens 34 --runs 1",
    "bench membership": "--model {tiny} --lessons 4 --passes 2 --noise 1",
    "bench learn": "--seeds 1 --rounds 2 --members 3 --numbers 5000",
    "bench recovery": "--trials 1 --tokens 8 --roles middle --phases answer",
    "bench scheduler": "--rounds 1 --placed 100 --routed 3 100",
    "bench storage": "--rounds 2",
    "bench sums": "--numbers 5000 --members 4",
    "bench swarm": "--peers 2 --model {tiny}",
    "config": "",
    "key proof": "{tiny}",
    "model proof-key": "{tiny}",
    "ledger": "",
    "marked": "",
    "model calibrate": "{tiny}",
    "ps": "",
    "sim": "home --peers 3 --duration 20",
    "sim observer": "--users 20",
    "sim scale": "--peers 1000 --layers 20 --minutes 4",
    "sim storage": "--peers 20 --days 0.1",
    "sim validate": "--rounds 1 --questions 2 --quiet 1",
}
"""Commands, with the options that let them finish in seconds."""

PRINTED: Final = {
    "bench answers": {"ways", "questions"},
    "bench constraints": {"decode_cost", "ms_per_token_without"},
    "bench discovery": {"all_know_all_s", "late_peer_knows_all_s"},
    "bench evidence": {"decode_cost", "settle_ms"},
    "bench kv-root": {"decode_cost", "cpu_cost"},
    "bench membership": {"runs", "delta"},
    "bench learn": {"loss_ratio", "hiding"},
    "bench recovery": {"completed_share", "by_role_and_phase"},
    "bench scheduler": {"place_ms", "route_ms", "replacements_ms", "replaceable"},
    "bench storage": {"mb_per_s", "ratio_to_sha256"},
    "bench sums": {"is_exact", "margin_bits"},
    "bench swarm": {"first_token_s", "route"},
    "config": {"options"},
    "key proof": {"layers", "bytes"},
    "model proof-key": {"layers", "bytes"},
    "ledger": {"served", "used", "peers"},
    "marked": {"file", "marked"},
    "model calibrate": {"bounds"},
    "sim": {"digest", "questions"},
    "sim observer": {"paced", "holds"},
    "sim scale": {"peers"},
    "sim storage": {"chosen", "copies_3"},
    "sim validate": {"figures", "told"},
}
"""Some of the keys that each prints."""

ELSEWHERE: Final[dict[str, Callable[..., object]]] = {
    "bench agent": test_bench.test_agent,
    "bench cheats": test_cheats.test_cheats_are_caught_and_honest_stages_are_not,
    "bench churn": test_bench.test_churn,
    "bench decode": test_bench.test_decode,
    "bench fetch": test_parts.test_the_bench_measures,
    "bench honest": test_cheats.test_honest_stages_of_a_k_quant_pass,
    "bench proofs": test_cheats.test_openings_catch_cheats_without_layers,
    "bench relay": test_bench.test_relay,
    "bench rpc": test_bench.test_rpc,
    "bench transport": test_bench.test_transport,
    "bench wan": test_bench.test_wan,
    "chat": test_cli.test_chat_finds_all_peers_through_one,
    "demo": test_cli.test_demo_prints_one_json_object,
    "invite": test_invitations.test_a_link_is_all_that_a_newcomer_needs,
    "join": test_cli.test_lines_that_join_prints_can_be_typed,
    "learn": test_learn.test_a_swarm_gives_the_same_adapter,
    "model add": test_model.test_add_prints_the_id,
    "model find": test_model_names.test_find,
    "model list": test_model.test_list,
    "model rm": test_model.test_rm_keeps_parts_that_others_share,
    "model show": test_model.test_show,
    "model suggest": test_model_names.test_suggest,
    "model verify": test_model.test_verify_names_what_is_damaged,
    "network create": test_networks.test_a_founder_invites_and_expels_a_member,
    "network expel": test_networks.test_a_founder_invites_and_expels_a_member,
    "network invite": test_networks.test_a_founder_invites_and_expels_a_member,
    "network join": test_networks.test_a_founder_invites_and_expels_a_member,
    "network members": test_networks.test_a_founder_invites_and_expels_a_member,
    "peers": test_serving.test_peers_share_the_layers_and_repair_the_swarm,
    "keep": test_keep.test_a_model_outlives_two_of_five_storers,
    "relay": test_hidden_swarm.test_peers_behind_symmetric_nats_answer,
    "serve": test_gateway.test_official_client_lists_asks_and_streams,
    "service": test_service.test_options_and_variables_of_join_are_included,
    **dict.fromkeys(
        (
            f"settle {each}"
            for each in ("account", "deploy", "fund", "redeem", "voucher", "withdraw")
        ),
        test_settlement.test_the_command_line_pays_and_is_paid,
    ),
    "status": test_cli.test_status_names_the_peers_of_this_machine,
    "verify": test_certificate.test_an_answer_is_checked_and_certified,
}
"""The tests that run the other commands."""

ALONE: Final = {"doctor", "key new", "network key", "network-key", "--install-completion"}
"""Commands with tests of their own below; the last three print no JSON, but a file's name."""

LONG: Final = {
    "bench answers": "--seeds 2",
    "bench cheats": "--trials 1 --checkpoints 100",
    "bench honest": "--checkpoints 200",
    "bench proofs": "--trials 1 --openings 100",
    "bench membership": "",
    "bench learn": "",
    "bench recovery": "--trials 1",
    "bench scheduler": "",
    "sim validate": "",
}
"""Measurements that need minutes to be meaningful, with their options."""


def commands(of: App, *words: str) -> Iterator[str]:
    """Yield all commands, without options."""
    if of.default_command and words:
        yield " ".join(words)
    for name in of:
        if name not in {"--help", "-h", "--version"}:
            yield from commands(of[name], *words, name)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a model of 2 MB with random weights."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny(TINY["llama"], folder / "full.gguf")
    quantise(folder / "full.gguf", folder / "tiny.gguf", "Q4_K_M")
    return folder / "tiny.gguf"


def typed(words: str, **values: object) -> list[str]:
    """Split words as a shell does, and fill in the values that differ between runs."""
    return shlex.split(words.format(**values))


def test_no_command_is_without_a_test() -> None:
    """Each is in one table, or has a test here; those with JSON output are checked."""
    assert sorted(commands(app)) == sorted([*SMALL, *ELSEWHERE, *ALONE])
    assert all("--json" in option_names(_app(command)) for command in SMALL)
    assert set(LONG) <= {*SMALL, *ELSEWHERE}
    assert {*SMALL} - {*PRINTED} == {"ps"}  # whose report is a list


def _app(command: str) -> App:
    found = app
    for word in command.split():
        found = found[word]
    return found


@pytest.mark.parametrize("command", SMALL)
def test_command_prints_machine_readable_output(command: str, home: Path, tiny: Path) -> None:
    """One line of JSON, with the main results."""
    words = typed(SMALL[command], tiny=tiny)
    report = report_of(home, *command.split(), *words)
    assert PRINTED.get(command, set()) <= set(report)
    assert report or command == "ps"


def test_doctor_judges_a_machine_that_serves(home: Path, swarm: list[Peer]) -> None:
    """All findings are in its report, and its exit code says whether all is well."""
    words = typed("--network real --bootstrap {address}", address=swarm[0].address)
    report = report_of(home, "doctor", *words, codes=(0, 1))
    assert report["findings"]
    assert report["healthy"] is all(each["is_good"] for each in report["findings"])


def test_a_hunt_for_faults_prints_what_it_found(home: Path) -> None:
    """The command for scenarios, in its other mode."""
    assert report_of(home, "sim", "--hunt", "1", "--seed", "1")["found"] is None


def test_files_that_commands_write_are_named(home: Path, tmp_path: Path) -> None:
    """On standard output, alone on their line."""
    for words in (
        ["key", "new"],
        ["network", "key"],
        ["network-key"],
        ["--install-completion", "--shell", "bash", "--output"],
    ):
        file = tmp_path / " ".join(words[:2]).strip("-")
        result = run(home, *words, str(file))
        assert (result.returncode, result.stdout) == (0, f"{file}\n"), result.stderr
        assert file.read_bytes()


@pytest.mark.long
@pytest.mark.parametrize("command", LONG)
def test_long_measurement(command: str, home: Path, tiny: Path) -> None:
    """It ends, and prints JSON."""
    report: dict[str, Any] = report_of(home, *command.split(), *typed(LONG[command], tiny=tiny))
    assert json.dumps(report)
