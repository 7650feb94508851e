"""Tokens that mean more to a model than text, and where a text spells one of them."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_PREFIX_CHARS = 3
"""The length of ``<s>``: enough that hardly any other text begins like a control token."""


CALL_MARKS = (
    *("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),  # Mistral
    *("<tool_call>", "</tool_call>", "<TOOLCALL>", "</TOOLCALL>"),  # Hermes, Qwen, Nemotron
    *("<|tool_call|>", "<|/tool_call|>"),  # Phi
    *("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),  # noqa: RUF001 -- DeepSeek's own
    *("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),  # noqa: RUF001
)
"""What models call tools with. Where these are control tokens, answers show them all the same."""


@dataclass(frozen=True)
class SpecialTokens:
    """A vocabulary's special tokens, as text."""

    bos: str = ""
    """Begins a text; empty where the vocabulary has none."""
    eos: str = ""
    """Ends a text; empty where the vocabulary has none."""
    control: tuple[str, ...] = ()
    """Those that only a program may write: a user's text that spells one is plain text."""


NO_SPECIAL_TOKENS = SpecialTokens()


@dataclass(frozen=True, slots=True)
class ControlToken:
    """A token that only a program may write, such as the end of a turn."""

    token: int
    text: str
    strips_left: bool
    """Whitespace before it is removed."""
    strips_right: bool
    is_always: bool = False
    """llama.cpp takes whatever spells it for it, whether it is asked to or not."""


class Spellings:
    """Finds where a text spells one of some tokens.

    A vocabulary may have thousands of them, and a text may have megabytes. So the search is for
    the tokens' first characters, which nearly all of them share.
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
        """Yield where each spelling begins and the longest token there; they may overlap."""
        for begin in self._begins.finditer(text):
            at = begin.start()
            for length in sorted(self._lengths[begin[1]], reverse=True):
                if (found := text[at : at + length]) in self._tokens:
                    yield at, found
                    break
