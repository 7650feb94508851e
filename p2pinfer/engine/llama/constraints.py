"""Holding an answer to a grammar: which tokens may follow those that it has.

llguidance reads the grammars. llama.cpp's own sampler ends the process on some grammars, and on a
token that one does not allow; this one answers each with a sentence, knows JSON Schema by itself,
names the keywords that it does not, and bounds its work per token.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import llguidance
import numpy as np
from llguidance.gbnf_to_lark import gbnf_to_lark
from numpy.typing import NDArray

from p2pinfer.core.errors import EngineError, UserError

if TYPE_CHECKING:
    from p2pinfer.engine.llama.binding import Vocabulary

REASON_CHARS_MAX = 300
"""Of what is wrong with a grammar: it quotes what somebody sent."""

TOKENIZED_CHARS_MAX = 1000
"""At once: llama.cpp's tokenizer recurses once a character in some texts."""

_LIMITS = llguidance.LLParserLimits(
    step_lexer_fuel=100_000, step_max_items=25_000, verbose_errors=False
)
"""Half of what is usual: some 10 ms a token, for which all other answers wait."""

_BEFORE = "\x02"
"""A character that grows into no token with others."""

_SPECIAL = b"\xff"
"""Before a token that is no text, so that no text of a grammar asks for it."""


class Grammars:
    """What a vocabulary's answers can be held to.

    Args:
        vocabulary: of the model; its tokens are looked at once, which takes 0.1 s for 50,000.
    """

    def __init__(self, vocabulary: "Vocabulary") -> None:
        self.vocabulary, self._size = vocabulary, vocabulary.size
        control = {each.token for each in vocabulary.control_tokens()}
        ends = [token for token in range(self._size) if vocabulary.is_end(token)]
        pieces = [vocabulary.piece(token, special=True) for token in range(self._size)]

        class _Tokens:
            eos_token_id = ends[0] if ends else 0
            bos_token_id = None
            tokens = [  # noqa: RUF012 -- as llguidance wants it
                _SPECIAL + piece if token in control else piece
                for token, piece in enumerate(pieces)
            ]
            special_token_ids = sorted(control)

            def __call__(self, text: str) -> list[int]:
                """Return the tokens of a text that a grammar leaves no choice about."""
                if not isinstance(text, str):
                    raise TypeError("it is not text")  # is tried out, and then texts are given
                cuts = range(0, len(text), TOKENIZED_CHARS_MAX)
                parts = [text[at : at + TOKENIZED_CHARS_MAX] for at in cuts]
                return [token for part in parts for token in _tokens_within(vocabulary, part)]

        wrapped = llguidance.TokenizerWrapper(_Tokens())
        self._tokenizer = llguidance.LLTokenizer(wrapped, eos_token=ends or None)

    def read(self, text: str, *, is_gbnf: bool) -> str:
        """Return a grammar, translated if it is in GBNF, that the first token can be found by.

        Raises:
            UserError: it cannot be read, or takes too much work.
        """
        if is_gbnf:
            try:
                text = gbnf_to_lark(text)
            except Exception as error:  # it raises bare ones
                raise UserError(_refusal(str(error) or type(error).__name__)) from error
        try:
            constraint = self.begin(text)
            allowed = constraint.allowed()
        except EngineError as error:
            raise UserError(str(error)) from error
        if not allowed.any():
            raise UserError(_refusal("it allows no answer"))
        return text

    def begin(self, text: str, said: Sequence[int] = ()) -> "Constraint":
        """Hold an answer to a grammar from its beginning, or after the tokens that it has.

        A grammar that cannot be read, or does not allow those tokens, is told of at the next one.
        """
        matcher = llguidance.LLMatcher(self._tokenizer, text, log_level=0, limits=_LIMITS)
        matcher.consume_tokens(list(said))
        return Constraint(matcher, self._size)


class Constraint:
    """One answer that keeps to a grammar."""

    def __init__(self, matcher: Any, size: int) -> None:
        self._matcher, self._size = matcher, size

    def allowed(self) -> NDArray[np.bool_]:
        """Say of each token whether it may follow.

        Raises:
            EngineError: the grammar cannot be read, or that takes too much work.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(bits, count=self._size, bitorder="little").view(np.bool_)

    def accept(self, token: int) -> None:
        """Go on behind a token; raises EngineError where it is not allowed."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EngineError(_refusal(self._matcher.get_error()))


def _tokens_within(vocabulary: "Vocabulary", text: str) -> list[int]:
    """Return the tokens of a text that other text stands before: some begin one with a space."""
    before = vocabulary.tokenize(_BEFORE, special=False)
    return vocabulary.tokenize(_BEFORE + text, special=False)[len(before) :]


def _refusal(reason: str) -> str:
    """Say what is wrong with a grammar, in a line."""
    words = " ".join(reason.split("\n", 1)[0].split())  # what follows quotes the grammar
    return f"the grammar or schema cannot be kept to: {words[:REASON_CHARS_MAX]}"
