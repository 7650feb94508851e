"""What llama.cpp alone says, to compare a swarm's answers with."""

from contextlib import ExitStack, closing, suppress
from itertools import takewhile
from pathlib import Path

import numpy as np

from p2pinfer.core.errors import BadModelFile
from p2pinfer.engine.llama.binding import Settings, Slice, Span, Vocabulary

PROMPT_TOKENS = 5
"""Narrow, as what follows: the answer is the same whatever else the swarm does."""
ANSWER_TOKENS = 24
ANSWER_TOKENS_MIN = 12
PROMPTS = 40


def said_alone(model: Path) -> tuple[list[int], list[int]]:
    """Return a prompt, and what llama.cpp alone says to it without coming to an end.

    It says the same with values in bfloat16 and without flash attention, as stages may compute
    where that is faster: for random weights two tokens are often so close that one in a few hundred
    comes out otherwise. Random experts are chosen by a hair in most steps: with them the answer may
    be shorter, as long as all say the same.
    """
    kept = [Settings(), Settings(values_bf16=True), Settings(flash_attention=False)]
    longest: tuple[list[int], list[int]] = ([], [])
    with ExitStack() as stack:
        wholes = []
        for each in kept:
            with suppress(BadModelFile):  # latent attention keeps K and V in one type
                part = Slice(model, logits=True, settings=each, sessions=1, context=64)
                wholes.append(stack.enter_context(closing(part)))
        ends = Vocabulary(wholes[0].vocab).is_end
        for seed in range(PROMPTS):
            random = np.random.default_rng(seed)
            prompt = random.integers(3, wholes[0].vocabulary, PROMPT_TOKENS).tolist()
            said = zip(*(_answer(whole, prompt) for whole in wholes), strict=True)
            alike = takewhile(lambda each: len(set(each)) == 1 and not ends(each[0]), said)
            answer = [token for token, *_ in alike]
            longest = max(longest, (prompt, answer), key=lambda each: len(each[1]))
            if len(answer) == ANSWER_TOKENS:
                break
    assert len(longest[1]) >= ANSWER_TOKENS_MIN, "every answer is short, or hangs by a hair"
    return longest


def _answer(whole: Slice, prompt: list[int]) -> list[int]:
    found: list[int] = []
    told, position = np.array(prompt, np.int32), 0
    while len(found) < ANSWER_TOKENS:
        logits = whole.decode([Span(0, position, told)])[0]
        found.append(int(logits.argmax()))
        position += len(told)
        told = np.array(found[-1:], np.int32)
    return found
