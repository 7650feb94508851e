"""The estimate of sessions' memory, and its comparison with the available memory."""

import subprocess
import sys
from pathlib import Path

import pytest

from p2pinfer.core.errors import UserError
from p2pinfer.engine.gguf.reader import read_header
from p2pinfer.engine.llama.memory import aside_sessions, check_fits, check_runs, sessions_bytes


def test_default_model_takes_three_quarters_of_a_kib_per_position_and_layer(
    default_model: Path,
) -> None:
    """SmolLM2 has 3 KV heads of 64 numbers, for keys and for values, 2 bytes each."""
    header = read_header(default_model)
    assert sessions_bytes(header, 1, 1, 1) == 768
    assert sessions_bytes(header, 10, 8, 4096) == 768 * 10 * 8 * 4096
    assert [aside_sessions(count) for count in (1, 2, 8)] == [1, 1, 2]


@pytest.mark.slow
def test_an_address_space_limit_bounds_available_memory() -> None:
    """As set by ``ulimit -v``."""
    code = (
        "import resource\n"
        "from p2pinfer.engine.llama.memory import available_bytes\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, -1))\n"
        "print(available_bytes(host_bytes=lambda: 1 << 40) <= 1 << 30)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_sessions_that_do_not_fit_are_refused_with_a_remedy() -> None:
    """The sentence names both sizes and both options; an exact fit is accepted."""
    check_fits(1 << 30, 1 << 30, 1, 1)
    with pytest.raises(UserError, match=r"4\.0 GiB .* 1\.0 GiB are free: .*--context.*--sessions"):
        check_fits(4 << 30, 1 << 30, 8, 1000)


def test_a_model_that_cannot_run_is_refused() -> None:
    """Swap space counts as memory."""
    check_runs("A model", 300 << 20, 100 << 20, 200 << 20)
    words = "A model needs at least 301 MiB of memory, and 100 MiB are free: .*container"
    with pytest.raises(UserError, match=words):
        check_runs("A model", 301 << 20, 100 << 20, 200 << 20)
