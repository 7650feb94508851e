"""Tokens that mean something to a model beyond text, and where a text spells one of them."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_PREFIX_CHARS = 3
"""As long as ``<s>``: enough that hardly any other text begins like a control token."""


@dataclass(frozen=True)
class SpecialTokens:
    """What a vocabulary has of them, as text."""

    bos: str = ""
    """Begins a text; empty where the vocabulary has none."""
    eos: str = ""
    """Ends it, likewise."""
    control: tuple[str, ...] = ()
    """Those that only a program may write: a text that spells one is not meant so."""


NO_SPECIAL_TOKENS = SpecialTokens()


@dataclass(frozen=True, slots=True)
class ControlToken:
    """A token that only a program may write, such as the end of a turn."""

    token: int
    text: str
    strips_left: bool
    """The white space before it goes away."""
    strips_right: bool


class Spellings:
    """Finds where a text spells one of some tokens.

    A vocabulary may have thousands of them, and a text megabytes: so it is searched for how they
    begin, which is nearly the same for all of them.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self._tokens = {token for token in tokens if token.strip()}
        prefix_chars = min(map(len, self._tokens), default=0)
        self._lengths: dict[str, set[int]] = {}
        for token in self._tokens:
            prefix = token[: min(prefix_chars, _PREFIX_CHARS)]
            self._lengths.setdefault(prefix, set()).add(len(token))
        begins = "|".join(re.escape(prefix) for prefix in sorted(self._lengths))
        self._begins = re.compile(f"(?=({begins}))" if begins else r"(?!)")

    def find(self, text: str) -> Iterator[tuple[int, str]]:
        """Yield where each spelling begins and the longest token that it is; they may overlap."""
        for begin in self._begins.finditer(text):
            at = begin.start()
            for length in sorted(self._lengths[begin[1]], reverse=True):
                if (found := text[at : at + length]) in self._tokens:
                    yield at, found
                    break
