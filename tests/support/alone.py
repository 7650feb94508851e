"""What llama.cpp alone says, to compare a swarm's answers with."""

from contextlib import closing
from pathlib import Path

import numpy as np

from p2pinfer.engine.llama.binding import Settings, Slice, Span, Vocabulary

PROMPT_TOKENS = 5
"""Narrow, as what follows: the answer is the same whatever else the swarm does."""
ANSWER_TOKENS = 24
PROMPTS = 20


def said_alone(model: Path) -> tuple[list[int], list[int]]:
    """Return a prompt, and what llama.cpp alone says to it without coming to an end."""
    whole = Slice(model, logits=True, settings=Settings(), sessions=1, context=64)
    with closing(whole):
        ends = Vocabulary(whole.vocab).is_end
        for seed in range(PROMPTS):
            random = np.random.default_rng(seed)
            prompt = random.integers(3, whole.vocabulary, PROMPT_TOKENS).astype(np.int32)
            found: list[int] = []
            told, position = prompt, 0
            while len(found) < ANSWER_TOKENS:
                logits = whole.decode([Span(0, position, told)])[0]
                found.append(int(logits.argmax()))
                position += len(told)
                told = np.array(found[-1:], np.int32)
            if not any(map(ends, found)):
                return prompt.tolist(), found
    raise AssertionError("every prompt has a short answer")
