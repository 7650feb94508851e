"""Measurements run, and print what they promise."""

import os
from pathlib import Path

import pytest

from p2pinfer.core.limits import BLOCK_ROWS
from tests.support.commands import bench, run
from tests.support.tiny_models import TINY, write_tiny

pytestmark = pytest.mark.real


@pytest.mark.parametrize(("peers", "sessions"), [(1, 1), (3, 2)])
def test_decode(home: Path, peers: int, sessions: int) -> None:
    """The swarm gives the same tokens; rates and ratios of both transports and of llama.cpp."""
    more = ["--sessions", str(sessions)] if sessions > 1 else []
    prompts = ["20", "600"] if sessions > 1 else ["20"]
    more += [word for prompt in prompts for word in ("--prompts", prompt)]
    report = bench(home, "decode", f"--peers={peers}", "--runs", "1", "--tokens", "16", *more)
    assert report["same_tokens"] is True
    assert set(report["prompts"]) == set(prompts)
    for each in report["prompts"].values():
        assert each["prefill_ratio"] > 0
        assert each["same_settings_decode_ratio"] > 0
    assert (report["peers"], report["tokens"], report["runs"]) == (peers, 16, 1)
    assert report["alone"]["tokens_per_second"] > 0
    assert report["alone"]["ms_per_token"] > 0
    for transport in ("libp2p", "tcp"):
        figures = report[transport]
        assert {"decode_ratio", "decode_ratios", "prefill_ratio", "ms_per_boundary"} <= set(figures)
        assert {"engine_ms_per_token", "tokens_per_second", "time_to_first_token_ms"} <= set(
            figures
        )
    for each in (report["floor"], report["trio_floor"]):
        assert set(each) == {"ms_per_boundary", "decode_ratio", "engine_ms_per_token"}
        assert each["decode_ratio"] > 0
    if sessions > 1:
        assert report["sessions"] == sessions
        assert set(report["aggregate_ratio"]) == {"alone", "libp2p", "tcp"}


def test_rpc(home: Path, tmp_path: Path) -> None:
    """Beside llama.cpp's own servers, where somebody compiled them, on a tiny model."""
    server = os.environ.get("P2PINFER_RPC_SERVER")
    if not server:
        pytest.skip("P2PINFER_RPC_SERVER does not name llama.cpp's ggml-rpc-server")
    write_tiny(TINY["llama"], tmp_path / "tiny.gguf")
    model = ["--model", str(tmp_path / "tiny.gguf"), "--prompt-tokens", "60"]
    sizes = ["--peers", "2", "--runs", "2", "--tokens", "8"]
    report = bench(home, "rpc", "--rpc-server", server, *model, *sizes)
    assert report["swarm"]["same_tokens"] is True
    for name in ("rpc_to_alone", "swarm_to_alone", "swarm_to_rpc"):
        assert len(report[name]["decode_ratios"]) == report["runs"] == 2
        assert report[name]["decode_ratio"] > 0
        assert report[name]["prefill_ratio"] > 0


def test_rpc_without_a_server_says_how_to_have_one(home: Path) -> None:
    """In one sentence, before anything is started."""
    result = run(home, "bench", "rpc")
    assert result.returncode == 2
    assert "GGML_RPC=ON" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_transport(home: Path) -> None:
    """Round trips, bulk and both at once, through our muxer and the library's."""
    report = bench(home, "transport", "--rounds", "1")
    names = {
        "round_trip_p50_ms",
        "round_trip_after_pause_p50_ms",
        "cpu_per_round_trip_ms",
        "bulk_mb_per_s",
        "round_trip_during_bulk_p50_ms",
        "round_trip_during_bulk_p99_ms",
    }
    assert set(report) == {"own", "library", "ratio"}
    assert all(set(report[each]) == names for each in report)
    assert all(value > 0 for each in report.values() for value in each.values())


def test_churn(home: Path) -> None:
    """Peers come and go: no answer is lost or different, and nothing leaks."""
    report = bench(home, "churn", "--minutes", "0.2", "--peers", "4", "--requesters", "2")
    assert report["answers"] > 0
    assert (report["errors"], report["lost"], report["different"]) == ([], 0, 0)
    assert sum(report["harms"].values()) > 0
    assert report["sessions_left"] == 0
    assert report["after"]["channels"] == 0


@pytest.mark.long
def test_agent(home: Path) -> None:
    """A turn of an agent reads only what is new, also after a peer's death."""
    report = bench(home, "agent", "--turns", "2", "--context", "2200")
    first, second = report["prompt_tokens"]
    assert report["read_tokens"][0] == first
    assert report["read_tokens"][1] <= second - first + 64  # the generation prompt differs
    assert report["read_share"] < 0.2
    assert report["after_a_death_read_share"] < 0.01
    assert report["stream_gap_p50_s"] > 0
    assert 0 < report["blocks_read_between_tokens_mean"] < second / BLOCK_ROWS  # it went on
    assert set(report["first_token_ratio"]) == {"2"}


def test_wan(home: Path) -> None:
    """Tokens sent ahead change none of the real model's answers, and many are the right ones."""
    asked = ["--texts", "chat", "edit", "--samplers", "greedy", "t1.5-penalty"]
    how = ["--peers", "2", "--rtt", "40", "--tokens", "36", "--runs", "1"]  # where drafts pay
    report = bench(home, "wan", *how, *asked, "--draft-requantised", "Q3_K_M")
    assert report["same_tokens"] == "16 of 16"
    texts = report["texts"]
    assert set(texts) == {f"{text} {how}" for text in asked[1:3] for how in asked[4:]}
    # None where a busy machine made links look short, and no draft went out.
    accepted = {name: texts[f"{name} greedy"] for name in asked[1:3]}
    by_text, by_model = accepted["edit"]["text"]["accepted"], accepted["edit"]["model"]["right"]
    assert by_text is None or by_text > 0.3
    assert by_model is None or by_model > 0.6
    assert any(side["accepted"] is not None for text in texts.values() for side in text.values())
    assert all(side["ratio"] > 0 for text in texts.values() for side in text.values())


def test_relay(home: Path) -> None:
    """What a relay carries for a second of its CPU, and that a flood costs it little memory."""
    report = bench(home, "relay", "--rounds", "1", "--mbytes", "8")
    assert set(report) == {
        "mb_per_cpu_second",
        "messages_per_cpu_second",
        "round_trip_ratio",
        "added_ms",
        "flood_mb",
    }
    assert all(report[name] > 0 for name in report.keys() - {"added_ms", "flood_mb"})
    assert report["flood_mb"] < 50
