"""Filling in the middle: a prompt of what comes before a gap, and what behind it."""

from collections.abc import Sequence

from p2pinfer.core.errors import UserError
from p2pinfer.engine.special_tokens import SpecialTokens, Spellings
from p2pinfer.engine.template import Prompt

MARKS: Sequence[tuple[str, str, str]] = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # Granite, SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # noqa: RUF001 -- DeepSeek's own
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM
)
"""What families write before the text, in its gap, and where the middle begins."""


def marks_of(special: SpecialTokens) -> tuple[str, str, str] | None:
    """Return the marks that a vocabulary has; None where its model was not made for gaps."""
    return next((marks for marks in MARKS if {*marks} <= {*special.control}), None)


def infill_prompt(special: SpecialTokens, prefix: str, suffix: str) -> Prompt:
    """Return the prompt that asks for what stands between two texts.

    What spells a control token in them is text.

    Raises:
        UserError: the model was not made for that.
    """
    marks = marks_of(special)
    if marks is None:
        raise UserError(
            "this model has no fill-in-the-middle tokens, so it can honour no suffix: ask it"
            " without, or ask a model for code"
        )
    spellings = Spellings(special.control)
    text, literal = "", []
    for mark, part in zip(marks, (prefix, suffix, ""), strict=True):
        text += mark
        literal += [len(text) + at for at, _ in spellings.find(part)]
        text += part
    return Prompt(text, tuple(literal))
