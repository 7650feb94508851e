"""A fixture that most tests of the gateway use."""

from typing import Any

import pytest

from p2pinfer.engine import template
from p2pinfer.engine.helper_process import Helper


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Render in this process, since another would not wait for a mock clock; keep the prompts."""
    made: list[str] = []

    async def ask(_: Helper, question: list[Any]) -> list[Any]:
        found = template._answer(question)
        made.append(found[0])
        return found

    monkeypatch.setattr(Helper, "ask", ask)
    return made
