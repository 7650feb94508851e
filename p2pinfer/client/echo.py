"""A completion's prompt that is said before its answer, and how likely the model found it."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, replace

from p2pinfer.client.answer import Scored
from p2pinfer.engine.base import Candidate, Scores


@dataclass(frozen=True)
class Echo:
    """A prompt as its reader gets it back."""

    text: str
    tokens: Sequence[int] = ()
    pieces: Sequence[bytes] = ()
    """The bytes that each token stands for."""

    def scored(self, scores: Scores) -> tuple[Scored, ...]:
        """Return what is told of its tokens: nothing comes before the first, so it has no score."""
        if not self.tokens:
            return ()
        first = (Candidate(self.tokens[0], self.pieces[0], None),)
        offsets = _offsets(self.text, self.pieces)
        return tuple(map(Scored, offsets, [first, *scores]))

    def behind(self, scores: Sequence[Scored]) -> tuple[Scored, ...]:
        """Return the scores of an answer that is said behind it."""
        return tuple(replace(each, offset=each.offset + len(self.text)) for each in scores)


NO_ECHO = Echo("")


def text_of(pieces: Sequence[bytes]) -> str:
    """Return the text that tokens stand for."""
    return b"".join(pieces).decode(errors="replace")


def _offsets(text: str, pieces: Sequence[bytes]) -> list[int]:
    """Say how many characters of a text stand before each of its tokens.

    One that begins every text has none, and some vocabularies put a space before the first word.
    """
    data, at, chars = text.encode(), 0, 0
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    found = []
    for piece in pieces:
        found.append(chars)
        if not data.startswith(piece, at):
            piece = piece.removeprefix(b" ")  # noqa: PLW2901
        if data.startswith(piece, at):
            at += len(piece)
            chars += len(decoder.decode(piece))
    return found
