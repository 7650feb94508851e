"""The endpoints of interfaces that are translated into chats, before a gateway."""

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from p2pinfer.api import messages, ollama
from p2pinfer.api.certificates import receipt_link
from p2pinfer.api.completions import ID_BYTES, body_of
from p2pinfer.api.gateway import Finished, Gateway
from p2pinfer.api.messages import MessagesInterface
from p2pinfer.api.ollama import OllamaChat, OllamaGenerate
from p2pinfer.api.ollama_models import refuse_embeddings
from p2pinfer.api.problems import Problem, problem_of
from p2pinfer.api.questions import Question, chat_question, completion_question
from p2pinfer.api.replies import trust_header
from p2pinfer.api.responses import ResponsesInterface
from p2pinfer.api.streams import EventStream, Worked
from p2pinfer.api.translation import Interface, Writer, renamed
from p2pinfer.core.errors import P2pinferError
from p2pinfer.core.sampling import SEEDS

Find = Callable[[Any], Awaitable[tuple[Gateway, str]]]
"""Returns the gateway that answers for a model, by any of its names, and its short name."""

MESSAGES_PATH = "/v1/messages"


def body_for(path: str, problem: Problem) -> dict[str, Any]:
    """Return a problem in the envelope of the interface that was asked."""
    if path == MESSAGES_PATH or path.startswith(f"{MESSAGES_PATH}/"):
        return messages.problem_body(problem)
    return ollama.problem_body(problem) if path in ollama.PATHS else problem.body


class Translated:
    """``/v1/messages``, ``/v1/responses`` and Ollama's questions; what is refused with a reason."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self._messages, self._responses = MessagesInterface(), ResponsesInterface()

    @property
    def routes(self) -> list[Route]:
        """Where each endpoint is."""
        asked: dict[str, Interface] = {
            MESSAGES_PATH: self._messages,
            "/v1/responses": self._responses,
            "/api/chat": OllamaChat(),
            "/api/generate": OllamaGenerate(),
        }
        return [
            *(
                Route(path, partial(self._answer, interface), methods=["POST"])
                for path, interface in asked.items()
            ),
            Route(f"{MESSAGES_PATH}/count_tokens", self._count, methods=["POST"]),
            Route("/v1/embeddings", refuse_embeddings, methods=["POST"]),
        ]

    async def _count(self, request: Request) -> Response:
        body = await body_of(request)
        gateway, _ = await self._find(body.get("model"))
        ignored = self._messages.check(body)
        question = _question(self._messages, gateway, self._messages.counted_body(body), ignored)
        try:
            return JSONResponse({"input_tokens": await gateway.count_tokens(question)})
        except P2pinferError as error:
            raise problem_of(error) from error

    async def _answer(self, interface: Interface, request: Request) -> Response:
        body = await body_of(request)
        gateway, slug = await self._find(body.get("model"))
        ignored = interface.check(body)
        name = interface.prefix + secrets.token_hex(ID_BYTES)
        head = {"id": name, "created": gateway.now(), "model": slug}
        if (reply := interface.at_once(head, body)) is not None:
            return JSONResponse(reply)
        question = _question(interface, gateway, interface.chat_body(body), ignored)
        writer = interface.writer(head, body)
        headers = {"x-request-id": name, "x-p2pinfer-receipt": receipt_link(name)}
        if question.ignored:
            headers["x-p2pinfer-ignored"] = ", ".join(question.ignored)
        if question.stream:
            events = _events(gateway, question, name, interface, writer)
            headers["content-type"] = interface.content_type
            return EventStream(events, headers, interface.failed, interface.ping)

        async def work() -> Response:
            answers = []
            async with aclosing(gateway.answer(question, name)) as parts:
                async for part in parts:
                    for _ in writer.take(part):
                        pass
                    if isinstance(part, Finished):
                        answers.append(part.answer)
            return JSONResponse(writer.whole, headers=headers | trust_header(answers))

        return Worked(work)


def _question(
    interface: Interface, gateway: Gateway, asked: dict[str, Any], ignored: tuple[str, ...]
) -> Question:
    """Judge a translated request; what is wrong is said in the interface's own words."""
    seed = secrets.randbelow(SEEDS) if gateway.seed is None else gateway.seed
    judge = chat_question if "messages" in asked else completion_question
    try:
        question = judge(asked, gateway.defaults, seed)
    except Problem as problem:
        raise renamed(problem, interface.names) from None
    return replace(question, ignored=ignored)


async def _events(
    gateway: Gateway, question: Question, name: str, interface: Interface, writer: Writer
) -> AsyncGenerator[bytes]:
    has_begun = False
    async with aclosing(gateway.answer(question, name)) as parts:
        async for part in parts:
            if not has_begun:
                has_begun = True
                answer = part.answer if isinstance(part, Finished) else gateway.running[name]
                for each in writer.begin(answer.prompt_tokens, answer.reused_tokens):
                    yield interface.encode(each)
            for each in writer.take(part):
                yield interface.encode(each)
