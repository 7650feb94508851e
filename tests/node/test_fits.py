"""The estimate of what sessions take, and its comparison with what there is."""

from pathlib import Path

import pytest

from p2pinfer.core.errors import UserError
from p2pinfer.engine.gguf.reader import read_header
from p2pinfer.engine.llama.memory import available_bytes, check_fits, sessions_bytes


def test_default_model_takes_three_quarters_of_a_kib_per_position_and_layer(
    default_model: Path,
) -> None:
    """SmolLM2 has 3 KV heads of 64 numbers, for keys and for values, 2 bytes each."""
    header = read_header(default_model)
    assert sessions_bytes(header, 1, 1, 1) == 768
    assert sessions_bytes(header, 10, 8, 4096) == 768 * 10 * 8 * 4096


def test_free_memory_is_what_the_system_says(tmp_path: Path) -> None:
    """``/proc/meminfo`` counts in KiB; where there is none, or an old one, nobody knows."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 4000 kB\nMemAvailable:    3000 kB\n")
    assert available_bytes(meminfo) == 3000 * 1024
    meminfo.write_text("MemTotal: 4000 kB\n")
    assert available_bytes(meminfo) is None
    assert available_bytes(tmp_path / "none") is None


def test_what_does_not_fit_is_refused_with_what_to_change() -> None:
    """The sentence names both sizes and both options; equal or unknown is enough."""
    check_fits(1 << 30, 1 << 30, 1, 1)
    check_fits(1 << 60, None, 1, 1)
    with pytest.raises(UserError, match=r"4\.0 GiB .* 1\.0 GiB are free: .*--context.*--sessions"):
        check_fits(4 << 30, 1 << 30, 8, 1000)
