"""How the next token is drawn from logits, and what is reported of them."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from attrs import field, frozen, validators

SEEDS = 2**32 - 1
"""Seeds are smaller than this, which is llama.cpp's value for a random seed."""

USUAL: Final[Mapping[str, float]] = {"temperature": 0.7}
"""What differs from the fields' own defaults, which are llama.cpp's, where neither the asker nor
the model's file says how to sample. There is no repetition penalty: it spoils code, JSON, and any
text that must say a word again."""

TOP_LOGPROBS_MAX = 20
"""OpenAI's limit: each costs the answer some bytes and nobody reads more."""


LOGIT_BIAS_MAX = 1024
"""Tokens: OpenAI takes 300, and each is looked at for each token."""

GRAMMAR_CHARS_MAX = 512 * 1024
"""Schemas of a hundred tools have 200,000."""

REPEAT_LAST_N_MAX = 4096
"""More than penalties are of use for: they are counted for each token."""


def _pairs(given: Iterable[Iterable[Any]]) -> tuple[tuple[int, float], ...]:
    return tuple((int(token), float(bias)) for token, bias in given)


@frozen
class Sampling:
    """llama.cpp's samplers, applied in the order of the fields."""

    repeat_penalty: float = field(default=1.0, validator=[validators.gt(0), validators.le(10)])
    repeat_last_n: int = field(
        default=64, validator=[validators.ge(0), validators.le(REPEAT_LAST_N_MAX)]
    )
    """How many of the last tokens, the prompt's included, the penalty looks back on."""
    frequency_penalty: float = field(default=0.0, validator=[validators.ge(-2), validators.le(2)])
    presence_penalty: float = field(default=0.0, validator=[validators.ge(-2), validators.le(2)])
    top_k: int = field(default=40, validator=[validators.ge(0), validators.le(1_000_000)])
    top_p: float = field(default=0.95, validator=[validators.gt(0), validators.le(1)])
    min_p: float = field(default=0.05, validator=[validators.ge(0), validators.le(1)])
    temperature: float = field(default=0.0, validator=[validators.ge(0), validators.le(100)])
    """0 is greedy: the most likely token, always."""
    seed: int = field(default=0, validator=[validators.ge(0), validators.lt(SEEDS)])
    top_logprobs: int | None = field(
        default=None,
        validator=validators.optional([validators.ge(0), validators.le(TOP_LOGPROBS_MAX)]),
    )
    """How many of the likeliest tokens to tell beside each drawn one; None tells nothing. It
    changes no draw."""
    prompt_logprobs: int | None = field(
        default=None,
        validator=validators.optional([validators.ge(0), validators.le(TOP_LOGPROBS_MAX)]),
    )
    """The same of each of the prompt's tokens, all of which run again for it."""
    logit_bias: tuple[tuple[int, float], ...] = field(
        default=(), converter=_pairs, validator=validators.max_len(LOGIT_BIAS_MAX)
    )
    """Tokens, and what is added to the logit of each before all else."""
    grammar: str = field(default="", validator=validators.max_len(GRAMMAR_CHARS_MAX))
    """What the answer keeps to, as ``Tokenizer.read_grammar`` gives it; empty allows anything."""

    @property
    def is_penalised(self) -> bool:
        """Does what was said before change the logits?"""
        return self.repeat_last_n > 0 and (
            self.repeat_penalty != 1.0 or self.frequency_penalty != 0 or self.presence_penalty != 0
        )


def sampling_of(*wishes: Mapping[str, Any]) -> Sampling:
    """Return how several wish to sample, each by fields' names; later ones count for more.

    None wishes nothing. Raises ValueError where a value is out of range.
    """
    return Sampling(
        **{name: value for each in wishes for name, value in each.items() if value is not None}
    )
