"""How a process ended, in words."""

import pytest

from p2pinfer.core.exits import ending, lacked_memory


@pytest.mark.parametrize(
    ("returncode", "words"),
    [
        (0, "with code 0"),
        (3, "with code 3"),
        (-11, "on signal 11 (SIGSEGV)"),
        (-63, "on signal 63"),
    ],
)
def test_an_ending_in_words(returncode: int, words: str) -> None:
    """Signals are named, if they have a name."""
    assert ending(returncode) == words


@pytest.mark.parametrize(
    ("returncode", "last_line", "expected"),
    [
        (-9, "", True),
        (1, "MemoryError", True),
        (1, "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 3 GiB", True),
        (-6, "what():  std::bad_alloc", True),
        (-6, "GGML_ASSERT(buffer) failed to allocate 20 MiB", True),
        (-11, "", False),
        (1, "ModuleNotFoundError: No module named 'numpy'", False),
    ],
)
def test_lack_of_memory_is_recognised(returncode: int, last_line: str, expected: bool) -> None:
    """By the signal that only the system sends, or by the last line."""
    assert lacked_memory(returncode, last_line) == expected
