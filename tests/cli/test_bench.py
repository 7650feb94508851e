"""`p2pinfer bench`: unusable input."""

import pytest

from p2pinfer.core import errors
from tests.support.command_line import run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["wan", "--rtt", "1001"], "--rtt"),
        (["wan", "--draft-model", "default", "--draft-requantised", "Q2_K"], "one model drafts"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(
    words: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before a model is looked for."""
    assert run(monkeypatch, "bench", *words) == errors.EXIT_USAGE
    assert said in capsys.readouterr().err
