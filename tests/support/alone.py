"""What llama.cpp alone says, to compare a swarm's answers with."""

from contextlib import ExitStack, closing, suppress
from itertools import chain
from pathlib import Path

import numpy as np

from p2pinfer.core.errors import BadModelFile
from p2pinfer.engine.llama.binding import Settings, Slice, Span, Vocabulary

PROMPT_TOKENS = 5
"""Narrow, as what follows: the answer is the same whatever else the swarm does."""
ANSWER_TOKENS = 24
PROMPTS = 20


def said_alone(model: Path) -> tuple[list[int], list[list[int]]]:
    """Return a prompt, and what llama.cpp alone says to it without coming to an end.

    With values in bfloat16 or without flash attention, as stages compute where that is faster, it
    may say something else: for random weights two tokens are often close, and random experts are
    chosen by a hair. A prompt to which it says one thing is preferred. Where there is none, each of
    its answers may be a swarm's, if all slices of that choose alike.
    """
    kept = [Settings(), Settings(values_bf16=True), Settings(flash_attention=False)]
    found: list[tuple[list[int], list[list[int]]]] = []
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
            answers = [_answer(whole, prompt) for whole in wholes]
            if any(map(ends, chain(*answers))):
                continue
            found.append((prompt, answers))
            if all(each == answers[0] for each in answers):
                return prompt, answers[:1]
    assert found, "every prompt has a short answer"
    return found[0]


def _answer(whole: Slice, prompt: list[int]) -> list[int]:
    found: list[int] = []
    told, position = np.array(prompt, np.int32), 0
    while len(found) < ANSWER_TOKENS:
        logits = whole.decode([Span(0, position, told)])[0]
        found.append(int(logits.argmax()))
        position += len(told)
        told = np.array(found[-1:], np.int32)
    return found
