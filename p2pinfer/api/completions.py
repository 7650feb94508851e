"""``/v1``: models, chat completions and completions as OpenAI's clients expect them."""

import json
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from p2pinfer.api.certificates import receipt_link
from p2pinfer.api.gateway import CallOpens, CallPiece, Ended, Finished, Gateway, Said, Thinks
from p2pinfer.api.models import Models
from p2pinfer.api.problems import Problem
from p2pinfer.api.questions import Question, chat_question, completion_question
from p2pinfer.api.replies import (
    ChatFormat,
    CompletionFormat,
    Format,
    account_of,
    trust_header,
    usage_of,
    whole_reply,
)
from p2pinfer.api.streams import EventStream, Worked, event
from p2pinfer.client.answer import ChatOptions
from p2pinfer.core.sampling import SEEDS

BODY_BYTES_MAX = 4 * 1024 * 1024
"""Of a request: more text than the longest contexts hold."""

ID_BYTES = 12

Judge = Callable[[Mapping[str, Any], ChatOptions, int], Question]


async def body_of(request: Request) -> dict[str, Any]:
    """Read a request's JSON object; raises Problem."""
    data = bytearray()
    async with aclosing(request.stream()) as pieces:
        async for piece in pieces:
            data += piece
            if len(data) > BODY_BYTES_MAX:
                raise Problem(413, f"The request is larger than {BODY_BYTES_MAX >> 20} MiB.")
    try:
        body = json.loads(data)
        # Half a surrogate pair is no text, and neither NaN nor 1e999 is a number of JSON.
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise Problem(400, "The request's body is not JSON.", "invalid_json") from None
    if not isinstance(body, dict):
        raise Problem(400, "The request's body is not a JSON object.", "invalid_json")
    return body


class Completions:
    """The endpoints of a gateway's models."""

    def __init__(self, models: Models) -> None:
        self._models = models

    @property
    def routes(self) -> list[Route]:
        """Where each endpoint is."""
        chat = partial(self._complete, chat_question, ChatFormat())
        completion = partial(self._complete, completion_question, CompletionFormat())
        return [
            Route("/v1/models", self._all_models),
            Route("/v1/models/{model:path}", self._one_model),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", completion, methods=["POST"]),
        ]

    async def find(self, name: Any) -> tuple[Gateway, str]:
        """Return the gateway of a model, by any of its names, and its short name."""
        gateway = await self._models.find(name)
        return gateway, self._models.slug(gateway.swarm.client.model.id)

    async def _all_models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": self._models.describe()})

    async def _one_model(self, request: Request) -> Response:
        slug = self._models.slug(self._models.judge(request.path_params["model"]))
        (found,) = (each for each in self._models.describe() if each["id"] == slug)
        return JSONResponse(found)

    async def _complete(self, judge: Judge, format_: Format, request: Request) -> Response:
        body = await body_of(request)
        gateway = await self._models.find(body.get("model"))
        seed = gateway.seed
        seed = secrets.randbelow(SEEDS) if seed is None else seed
        question = judge(body, gateway.defaults, seed)
        name = format_.prefix + secrets.token_hex(ID_BYTES)
        slug = self._models.slug(gateway.swarm.client.model.id)
        head = {"id": name, "created": gateway.now(), "model": slug}
        headers = {"x-request-id": name, "x-p2pinfer-receipt": receipt_link(name)}
        if question.ignored:
            headers["x-p2pinfer-ignored"] = ", ".join(question.ignored)
        if question.stream:
            return EventStream(self._events(gateway, question, head, format_), headers)

        async def work() -> Response:
            async with aclosing(gateway.answer(question, name)) as parts:
                found = [part async for part in parts if isinstance(part, Finished)]
            reply = whole_reply(head, format_, found, question.choices)
            trust = trust_header(each.answer for each in found)
            return JSONResponse(reply, headers=headers | trust)

        return Worked(work)

    async def _events(
        self, gateway: Gateway, question: Question, head: dict[str, Any], format_: Format
    ) -> AsyncGenerator[bytes]:
        usage = {"usage": None} if question.include_usage else {}
        head = {**head, "object": format_.chunk_kind}

        def chunk(choice: dict[str, Any] | None, usage: dict[str, Any] = usage) -> bytes:
            choices = [] if choice is None else [choice]
            return event({**head, "choices": choices, **usage})

        answers: list[Finished] = []
        begun = ended = -1
        async with aclosing(gateway.answer(question, head["id"])) as parts:
            async for part in parts:
                if part.choice != begun:
                    begun = part.choice
                    if first := format_.begin(begun):
                        yield chunk(first)
                match part:
                    case Said():
                        yield chunk(format_.piece(part.choice, part.text, part.scores))
                    case Thinks() if isinstance(format_, ChatFormat):
                        yield chunk(format_.thought(part.choice, part.text))
                    case CallOpens(choice, at, called) if isinstance(format_, ChatFormat):
                        yield chunk(format_.opens(head["id"], choice, at, called))
                    case CallPiece(choice, at, text) if isinstance(format_, ChatFormat):
                        yield chunk(format_.argued(choice, at, text))
                    case Ended():  # a client need not wait for what is checked
                        ended = part.choice
                        yield chunk(format_.end(part.choice, part.finish))
                    case Finished():
                        answers.append(part)
                        finish = None if ended == part.choice else part.finish
                        end = format_.end(part.choice, finish)
                        yield chunk({**end, "p2pinfer": account_of(part)})
        if question.include_usage:
            yield chunk(None, {"usage": usage_of(answers, question.choices)})
        yield event("[DONE]")
