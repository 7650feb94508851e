"""The comparison with llama.cpp's own servers: what it needs, how it decides, and a small run."""

from pathlib import Path

import pytest

from p2pinfer.bench.decode import DecodeRun
from p2pinfer.bench.rpc import HOW_TO_BUILD, compare, find_server
from p2pinfer.core.errors import UserError


def _run(decode_s: float, prefill_s: float = 1.0, tokens: tuple[int, ...] = (1, 2, 3)) -> DecodeRun:
    return DecodeRun(list(tokens), prefill_s, decode_s)


def test_ratios_are_of_runs_in_the_same_turn() -> None:
    """A slow turn of the machine, which all of them had, leaves no trace in the medians."""
    found = {
        "alone": [_run(1.0), _run(8.0, 8.0), _run(1.0)],
        "rpc": [_run(2.0, 2.0), _run(16.0, 16.0), _run(4.0, 4.0)],
        "swarm": [_run(1.25, 0.5), _run(10.0, 4.0), _run(1.25, 0.5)],
    }
    report = compare(found, [1, 2, 3])
    assert report["rpc_to_alone"]["decode_ratios"] == [0.5, 0.5, 0.25]
    assert report["rpc_to_alone"]["decode_ratio"] == 0.5
    assert report["rpc_to_alone"]["prefill_ratio"] == 0.5
    assert report["swarm_to_alone"]["decode_ratio"] == 0.8
    assert report["swarm_to_alone"]["prefill_ratio"] == 2.0
    assert report["swarm_to_rpc"]["decode_ratios"] == [1.6, 1.6, 3.2]
    assert report["alone"]["tokens_per_second"] == 2.0


def test_one_other_token_in_one_run_is_told() -> None:
    """Of whichever of them made it."""
    runs = [_run(1.0), _run(1.0, tokens=(1, 2, 4))]
    found = {"alone": [_run(1.0)] * 2, "rpc": runs, "swarm": [_run(1.0)] * 2}
    report = compare(found, [1, 2, 3])
    same = {name: report[name]["same_tokens"] for name in found}
    assert same == {"alone": True, "rpc": False, "swarm": True}


def test_what_is_lacking_is_told_in_one_sentence(tmp_path: Path) -> None:
    """No name, no program, and a program without the libraries that the other side needs."""
    text, alone = tmp_path / "text", tmp_path / "alone"
    text.write_text("no program")
    alone.write_text("#!/bin/sh\n")
    alone.chmod(0o755)
    for program in (None, tmp_path, tmp_path / "absent", text, alone):
        with pytest.raises(UserError) as caught:
            find_server(program)
        assert HOW_TO_BUILD in str(caught.value)
        assert "\n" not in str(caught.value)
