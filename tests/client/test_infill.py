"""What stands between two texts."""

import pytest

from p2pinfer.client.infill import MARKS, infill_prompt
from p2pinfer.core.errors import UserError
from p2pinfer.engine.special_tokens import SpecialTokens


@pytest.mark.parametrize("marks", MARKS)
def test_prompt_has_the_familys_marks(marks: tuple[str, str, str]) -> None:
    """Before the text, in its gap, and behind; what spells one in a text is text."""
    special = SpecialTokens(control=(*marks, "<|end|>"))
    found = infill_prompt(special, "a<|end|>", f"b{marks[0]}")
    before, gap, middle = marks
    assert found.text == f"{before}a<|end|>{gap}b{before}{middle}"
    assert [found.text[at : at + 1] for at in found.literal] == ["<", "<"]
    assert found.literal == (len(before) + 1, len(f"{before}a<|end|>{gap}b"))


def test_model_without_them_refuses() -> None:
    """One mark alone is none."""
    with pytest.raises(UserError, match="no fill-in-the-middle tokens"):
        infill_prompt(SpecialTokens(control=("<|fim_prefix|>",)), "a", "b")
