"""A drafter that knows the answer, for sessions in place of their own."""

from collections.abc import Iterable, Sequence
from random import Random

from tests.support.fake_engines import VOCABULARY


class Oracle:
    """Drafts the answer's own tokens, or by chance other ones."""

    answer: Sequence[int] = ()
    right: float = 1.0

    def __init__(self, prompt: Iterable[int], match_tokens: int) -> None:
        self._made, self._chance = 0, Random(7)

    def add(self, token: int) -> None:
        """Count the answer's tokens."""
        self._made += 1

    def draft(self, ahead: Sequence[int], most: int) -> list[int]:
        """Draft behind them and what is drafted already."""
        at = self._made + len(ahead)
        return [
            token if self._chance.random() < self.right else (token + 1) % VOCABULARY
            for token in self.answer[at : at + most]
        ]
