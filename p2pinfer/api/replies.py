"""The objects of OpenAI's interface, and what we add to them under a name of our own."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from p2pinfer.chat import Answer


def model_slug(name: str) -> str:
    """Return a model's name as clients like to type it."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-") or "model"


def model_object(slug: str, created: int, name: str, digest: str, layers: int) -> dict[str, Any]:
    """Describe a model."""
    return {
        "id": slug,
        "object": "model",
        "created": created,
        "owned_by": "p2pinfer",
        "p2pinfer": {"name": name, "model": digest, "layers": layers},
    }


def usage_of(answers: Iterable[Answer], choices: int) -> dict[str, Any]:
    """Add up what answers took; of several choices a prompt counts once."""
    found = list(answers)
    asked = found[::choices]
    prompt = sum(answer.prompt_tokens for answer in asked)
    made = sum(answer.tokens for answer in found)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": sum(a.reused_tokens for a in asked)},
    }


def account_of(answer: Answer) -> dict[str, Any]:
    """Say how an answer went: who made it, how fast, and what was checked of it."""
    return {
        "route": answer.route,
        "tokens_per_second": answer.tokens_per_second,
        "time_to_first_token_ms": answer.time_to_first_token_ms,
        "tokens": answer.tokens,
        "reused_tokens": answer.reused_tokens,
        "trust": answer.trust and answer.trust.as_dict(),
    }


def trust_header(answers: Iterable[Answer]) -> dict[str, str]:
    """Say in a header what was checked of the answers; nothing where nothing was."""
    found = [answer.trust for answer in answers if answer.trust]
    if not found:
        return {}
    said = "held" if all(trust.held for trust in found) else "not-trusted"
    audits = sum(len(trust.audits) for trust in found)
    return {"x-p2pinfer-trust": f"{said}; stages={found[-1].stages}; audits={audits}"}


class ChatFormat:
    """Shapes of ``/v1/chat/completions``."""

    prefix, kind, chunk_kind = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        """Return a whole answer."""
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        return {
            "index": index,
            "message": message,
            "logprobs": None,
            "finish_reason": answer.finish,
        }

    def begin(self, index: int) -> dict[str, Any]:
        """Return what comes before an answer's first piece."""
        return self._delta(index, {"role": "assistant", "content": ""}, None)

    def piece(self, index: int, text: str) -> dict[str, Any]:
        """Return a piece."""
        return self._delta(index, {"content": text}, None)

    def end(self, index: int, finish: str) -> dict[str, Any]:
        """Return what ends an answer."""
        return self._delta(index, {}, finish)

    def _delta(self, index: int, delta: dict[str, str], finish: str | None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


class CompletionFormat:
    """Shapes of ``/v1/completions``."""

    prefix, kind, chunk_kind = "cmpl-", "text_completion", "text_completion"

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        """Return a whole answer."""
        return self._text(index, answer.text, answer.finish)

    def begin(self, index: int) -> None:
        """Say nothing before an answer's first piece."""

    def piece(self, index: int, text: str) -> dict[str, Any]:
        """Return a piece."""
        return self._text(index, text, None)

    def end(self, index: int, finish: str) -> dict[str, Any]:
        """Return what ends an answer."""
        return self._text(index, "", finish)

    def _text(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}


Format = ChatFormat | CompletionFormat


def whole_reply(
    head: dict[str, Any], format_: Format, answers: Sequence[Answer], choices: int
) -> dict[str, Any]:
    """Return the body of a request that is answered at once."""
    return {
        **head,
        "object": format_.kind,
        "choices": [format_.choice(index, answer) for index, answer in enumerate(answers)],
        "usage": usage_of(answers, choices),
        "p2pinfer": account_of(answers[-1]),
    }
