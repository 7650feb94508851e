"""What ``join`` makes of its options, before anything starts."""

from typing import Any

import pytest

from p2pinfer.cli import join, model_argument
from p2pinfer.core.errors import EXIT_USAGE
from tests.support.command_line import run

BOTH = ["id of a", "id of b"]


@pytest.fixture
def lent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Provide the models that would be lent to; each name is its own model's id."""
    found: list[Any] = []

    def lend(options: Any, *_: object, **__: object) -> None:
        found.extend(each.model for each in options)

    monkeypatch.setattr(join, "_lend", lend)
    monkeypatch.setattr(model_argument, "name_model", lambda name, *_: f"id of {name}")
    return found


@pytest.mark.parametrize(
    ("words", "variable", "models"),
    [
        ((), None, [None]),
        (("--model", "a"), None, ["id of a"]),
        (("--model", "a", "--model", "b", "--model", "a"), None, BOTH),
        ((), "with space.gguf", ["id of with space.gguf"]),
        ((), "a\nb c", ["id of a", "id of b c"]),
        (("--model", "b", "--layers", "1:9", "--listen", "/ip4/1.2.3.4/tcp/9"), None, ["id of b"]),
        (("--model", "a", "--model", "b", "--listen", "/ip4/1.2.3.4/tcp/0"), None, BOTH),
    ],
)
def test_models(
    lent: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    variable: str | None,
    models: list[str | None],
) -> None:
    """Named once or several times, or one a line in the variable, where a path may hold spaces."""
    if variable:
        monkeypatch.setenv("P2PINFER_MODEL", variable)
    assert run(monkeypatch, "join", *words) == 0
    assert lent == models


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layers", "1:9"),
        ("identity", "key"),
        ("listen", "/ip4/0.0.0.0/tcp/4001"),
        ("announce", "/ip4/203.0.113.7/tcp/4001"),
    ],
)
def test_what_is_for_one_model(
    lent: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str,
) -> None:
    """Two peers cannot have the same key, port or layers: the sentence says what to do."""
    words = ["--model", "a", "--model", "b", f"--{name}", value]
    assert run(monkeypatch, "join", *words) == EXIT_USAGE
    assert f"--{name} is for one model, and several are named" in capsys.readouterr().err
    assert not lent
