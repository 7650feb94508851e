"""``logprobs`` in the two shapes of OpenAI's interface."""

from collections.abc import Iterable, Sequence
from typing import Any

from p2pinfer.client.answer import Scored
from p2pinfer.engine.base import Candidate


def chat_scores(scores: Sequence[Scored]) -> dict[str, Any] | None:
    """Return them as a chat's choice or piece has them: None where nothing is told."""
    if not scores:
        return None
    content = [
        {**_entry(each.candidates[0]), "top_logprobs": [_entry(c) for c in each.candidates[1:]]}
        for each in scores
    ]
    return {"content": content, "refusal": None}


def completion_scores(scores: Sequence[Scored]) -> dict[str, Any] | None:
    """Return them as a completion's choice or piece has them; the drawn token is among the top.

    Nothing is told of a prompt's first token.
    """
    if not scores:
        return None
    drawn = [each.candidates[0] for each in scores]
    return {
        "tokens": [_name(each) for each in drawn],
        "token_logprobs": [each.logprob for each in drawn],
        "top_logprobs": [
            None if each.candidates[0].logprob is None else _by_name(each.candidates)
            for each in scores
        ],
        "text_offset": [each.offset for each in scores],
    }


def _entry(candidate: Candidate) -> dict[str, Any]:
    return {
        "token": candidate.piece.decode(errors="replace"),
        "logprob": candidate.logprob,
        "bytes": list(candidate.piece),
    }


def _by_name(candidates: Iterable[Candidate]) -> dict[str, float | None]:
    return {_name(each): each.logprob for each in candidates}


def _name(candidate: Candidate) -> str:
    r"""Return a token's text; what is no whole text is written as ``bytes:\xe2``, OpenAI's way."""
    try:
        return candidate.piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{each:02x}" for each in candidate.piece)
