"""The objects of OpenAI's interface, and what we add to them under a name of our own."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from blake3 import blake3

from p2pinfer.api.certificates import receipt_link
from p2pinfer.api.gateway import Finished
from p2pinfer.api.logprobs import chat_scores, completion_scores
from p2pinfer.api.model_facts import ModelFacts, Outline
from p2pinfer.client.answer import Answer, Scored
from p2pinfer.client.call_reading import ToolCall
from p2pinfer.client.echo import Echo


def model_slug(name: str) -> str:
    """Return a model's name as clients like to type it."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-") or "model"


def model_object(
    slug: str, created: int, name: str, digest: str, facts: ModelFacts | Outline
) -> dict[str, Any]:
    """Describe a model; little is known of one that is not open."""
    return {
        "id": slug,
        "object": "model",
        "created": created,
        "owned_by": "p2pinfer",
        **facts.as_dict(),
        "p2pinfer": {
            "name": name,
            "model": digest,
            "layers": facts.layers,
            "open": isinstance(facts, ModelFacts),
            "trust": facts.trust,
        },
    }


def usage_of(found: Sequence[Finished], choices: int) -> dict[str, Any]:
    """Add up what answers took; of several choices a prompt counts once."""
    asked = [each.answer for each in found[::choices]]
    prompt = sum(answer.prompt_tokens for answer in asked)
    made = sum(each.answer.tokens for each in found)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": sum(a.reused_tokens for a in asked)},
        "completion_tokens_details": {
            "reasoning_tokens": sum(each.thought_tokens for each in found),
            "accepted_prediction_tokens": sum(each.answer.drafts_kept for each in found),
            "rejected_prediction_tokens": sum(each.answer.drafts_dropped for each in found),
        },
    }


def account_of(finished: Finished) -> dict[str, Any]:
    """Say how an answer went: who made it, how fast, and what was checked of it."""
    answer, receipt = finished.answer, finished.receipt
    return {
        "route": answer.route,
        "path": answer.path,
        "pace_ms": answer.pace_ms,
        "tokens_per_second": answer.tokens_per_second,
        "time_to_first_token_ms": answer.time_to_first_token_ms,
        "tokens": answer.tokens,
        "reused_tokens": answer.reused_tokens,
        "drafts_kept": answer.drafts_kept,
        "drafts_dropped": answer.drafts_dropped,
        "trust": answer.trust and answer.trust.as_dict(),
        "receipt": receipt and receipt_link(receipt),
    }


def trust_header(answers: Iterable[Answer]) -> dict[str, str]:
    """Say in a header what was checked of the answers; nothing where nothing was."""
    found = [answer.trust for answer in answers if answer.trust]
    if not found:
        return {}
    said = "held" if all(trust.held for trust in found) else "not-trusted"
    audits = sum(len(trust.audits) for trust in found)
    return {"x-p2pinfer-trust": f"{said}; stages={found[-1].stages}; audits={audits}"}


CALL_ID_CHARS = 9
"""Letters and digits: what Mistral's templates want, and no other minds."""


def call_id(request: str, index: int, number: int) -> str:
    """Return what a call is known by: it is made of its request, choice and number."""
    return blake3(f"{request} {index} {number}".encode()).hexdigest()[:CALL_ID_CHARS]


def _tool_call(request: str, index: int, number: int, call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call_id(request, index, number), "type": "function", "function": function}


class ChatFormat:
    """Shapes of ``/v1/chat/completions``."""

    prefix, kind, chunk_kind = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def choice(self, request: str, found: Finished) -> dict[str, Any]:
        """Return a whole answer."""
        answer, speech = found.answer, found.speech
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if speech:
            message["content"] = speech.words or (None if speech.calls else "")
            if speech.thoughts:
                message["reasoning_content"] = speech.thoughts
            if speech.calls:
                message["tool_calls"] = [
                    _tool_call(request, found.choice, at, call)
                    for at, call in enumerate(speech.calls)
                ]
        return {
            "index": found.choice,
            "message": message,
            "logprobs": chat_scores(answer.scores_before(len(answer.text))),
            "finish_reason": found.finish,
        }

    def begin(self, index: int) -> dict[str, Any]:
        """Return what comes before an answer's first piece."""
        return self._delta(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, text: str, scores: Sequence[Scored]) -> dict[str, Any]:
        """Return a piece."""
        return self._delta(index, {"content": text}, scores)

    def thought(self, index: int, text: str) -> dict[str, Any]:
        """Return a piece of what the model thinks."""
        return self._delta(index, {"reasoning_content": text})

    def opens(self, request: str, index: int, number: int, name: str) -> dict[str, Any]:
        """Return what begins a call of a tool."""
        described = {"index": number, **_tool_call(request, index, number, ToolCall(name, ""))}
        return self._delta(index, {"tool_calls": [described]})

    def argued(self, index: int, number: int, text: str) -> dict[str, Any]:
        """Return a piece of a call's arguments."""
        described = {"index": number, "function": {"arguments": text}}
        return self._delta(index, {"tool_calls": [described]})

    def end(self, index: int, finish: str | None) -> dict[str, Any]:
        """Return what ends an answer; None where that was said before."""
        return self._delta(index, {}, finish=finish)

    def _delta(
        self,
        index: int,
        delta: dict[str, Any],
        scores: Sequence[Scored] = (),
        finish: str | None = None,
    ) -> dict[str, Any]:
        told = chat_scores(scores)
        return {"index": index, "delta": delta, "logprobs": told, "finish_reason": finish}


class CompletionFormat:
    """Shapes of ``/v1/completions``."""

    prefix, kind, chunk_kind = "cmpl-", "text_completion", "text_completion"

    def choice(self, _: str, found: Finished) -> dict[str, Any]:
        """Return a whole answer."""
        answer = found.answer
        own = Echo(found.echoed).behind(answer.scores_before(len(answer.text)))
        scores = (*found.echo_scores, *own)
        return self._text(found.choice, found.echoed + answer.text, scores, found.finish)

    def begin(self, index: int) -> None:
        """Say nothing before an answer's first piece."""

    def piece(self, index: int, text: str, scores: Sequence[Scored]) -> dict[str, Any]:
        """Return a piece."""
        return self._text(index, text, scores)

    def end(self, index: int, finish: str | None) -> dict[str, Any]:
        """Return what ends an answer; None where that was said before."""
        return self._text(index, "", finish=finish)

    def _text(
        self, index: int, text: str, scores: Sequence[Scored] = (), finish: str | None = None
    ) -> dict[str, Any]:
        told = completion_scores(scores)
        return {"index": index, "text": text, "logprobs": told, "finish_reason": finish}


Format = ChatFormat | CompletionFormat


def whole_reply(
    head: dict[str, Any], format_: Format, found: Sequence[Finished], choices: int
) -> dict[str, Any]:
    """Return the body of a request that is answered at once."""
    return {
        **head,
        "object": format_.kind,
        "choices": [
            {**format_.choice(head["id"], each), "p2pinfer": account_of(each)} for each in found
        ],
        "usage": usage_of(found, choices),
    }
