"""A chat model for LangChain that asks a swarm itself: no gateway, no address of one.

from p2pinfer import connect
from p2pinfer.langchain import ChatP2pinfer

with connect(["/ip4/192.168.1.7/tcp/40613/p2p/12D3KooW…"]) as swarm:
    print(ChatP2pinfer(swarm=swarm).invoke("Name a tree.").text)

LangChain has no entry points for chat models, and the table of ``init_chat_model`` is its own: a
model is imported by its name.
"""

import secrets
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, closing, contextmanager
from operator import itemgetter
from typing import Any, TypeVar

import trio
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.exceptions import (
    ContextOverflowError,
    ModelAPIError,
    ModelConnectionError,
    ModelError,
    ModelInvalidRequestError,
    ModelRateLimitError,
    ModelTimeoutError,
    OutputParserException,
)
from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.language_models.chat_models import (
    agenerate_from_stream,
    generate_from_stream,
)
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ToolCallChunk,
    convert_to_openai_messages,
)
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.outputs import ChatGenerationChunk, ChatResult, Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from p2pinfer.api.completions import ID_BYTES
from p2pinfer.api.gateway import CallOpens, CallPiece, Finished, Gateway, Part, Said, Thinks
from p2pinfer.api.logprobs import chat_scores
from p2pinfer.api.problems import Problem, problem_of
from p2pinfer.api.questions import Question, chat_question
from p2pinfer.api.replies import account_of, call_id
from p2pinfer.client.answer import ChatOptions
from p2pinfer.client.joining import AsyncioSwarm, SyncSwarm
from p2pinfer.client.library import Swarm
from p2pinfer.core.errors import P2pinferError
from p2pinfer.core.sampling import SEEDS, USUAL, sampling_of

T = TypeVar("T")

PROVIDER = "p2pinfer"

Schema = dict[str, Any] | type
Callables = Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool]


class ChatP2pinfer(BaseChatModel):
    """The model of a swarm, as a chat model of LangChain.

    What is not set here is as the model's file advises. Whatever else ``/v1/chat/completions``
    takes, such as ``logit_bias``, may stand in ``model_kwargs``, or be given to a single call.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    swarm: SyncSwarm | AsyncioSwarm = Field(exclude=True, repr=False)
    """What ``with connect(…)`` or, under asyncio, ``async with connect(…)`` gives. The first may be
    asked from asyncio too, which takes a thread for each answer; the second from other threads."""
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    """None draws one for each answer."""
    max_tokens: int | None = None
    """Of an answer; None is as many as a session has room for."""
    stop: list[str] | None = None
    """Texts that end an answer."""
    timeout: float | None = None
    """Seconds that an answer may take in all."""
    enable_thinking: bool | None = None
    """False ends thoughts before they begin."""
    streaming: bool = True
    """Callbacks hear each piece as it is made, whether asked for a stream or not; as many models
    have this, it may be given."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)

    _gateway: Gateway | None = PrivateAttr(default=None)

    @property
    def model_name(self) -> str:
        """What the model calls itself."""
        return self.swarm.model_name

    @property
    def _llm_type(self) -> str:
        return PROVIDER

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {"model_name": self.model_name, **self._own()}

    def _resolve_model_profile(self) -> ModelProfile:
        return {
            "max_input_tokens": self._plain.run(_context),
            "text_inputs": True,
            "text_outputs": True,
            "tool_calling": True,
            "tool_choice": True,
            "structured_output": True,
            "temperature": True,
        }

    def bind_tools(
        self,
        tools: Callables,
        *,
        tool_choice: dict[str, Any] | str | bool | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return this model with tools that it may call.

        Args:
            tools: functions, pydantic classes, LangChain's tools, or OpenAI's descriptions.
            tool_choice: ``auto``, ``none``, ``any`` (true and ``required`` are the same), or the
                name of the one that must be called.
            strict: refuse schemas that arguments cannot be held to.
            kwargs: of each call, such as ``parallel_tool_calls``.
        """
        offered = [convert_to_openai_tool(each, strict=strict) for each in tools]
        named = {each["function"]["name"] for each in offered}
        choice = tool_choice
        if isinstance(choice, bool):
            choice = "required" if choice else None
        elif isinstance(choice, str) and choice in named:
            choice = {"type": "function", "function": {"name": choice}}
        if choice is not None:
            kwargs["tool_choice"] = choice
        return super().bind(tools=offered, **kwargs)

    def with_structured_output(
        self,
        schema: Schema,
        *,
        method: str = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """Return this model with answers of one shape: of a pydantic class, or dicts.

        Args:
            schema: a pydantic class, a ``TypedDict``, or JSON Schema.
            method: ``json_schema`` holds the answer itself to it, ``function_calling`` the
                arguments of a tool, and ``json_mode`` holds the answer to JSON of any kind.
            include_raw: return the message as well, and what could not be read of it.
            strict: refuse a schema that says what answers cannot be held to.
            kwargs: none are known.
        """
        if method == "function_calling":
            return super().with_structured_output(schema, include_raw=include_raw, **kwargs)
        if method not in {"json_schema", "json_mode"}:
            raise ValueError(
                f"method must be json_schema, function_calling or json_mode, and not {method!r}"
            )
        if kwargs:
            raise ValueError(f"unknown arguments: {', '.join(kwargs)}")
        shape: dict[str, Any] = {"type": "json_object"}
        if method == "json_schema":
            found = convert_to_json_schema(schema)
            told = {"name": found.get("title", "answer"), "schema": found, "strict": bool(strict)}
            shape = {"type": method, "json_schema": told}
        parser: _WholeJson = _WholeJson()
        if isinstance(schema, type) and is_basemodel_subclass(schema):
            parser = _WholeObject(pydantic_object=schema)
        format_ = {"kwargs": {"method": method, "strict": strict}, "schema": schema}
        asked = self.bind(response_format=shape, ls_structured_output_format=format_)
        if not include_raw:
            return asked | parser
        good = RunnablePassthrough.assign(
            parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
        )
        bad = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=asked) | good.with_fallbacks([bad], exception_key="parsing_error")

    def get_token_ids(self, text: str) -> list[int]:
        """Return a text's tokens; raises ContextOverflowError where no session holds it."""
        with _in_words_of_langchain():
            return self._plain.run(lambda swarm: swarm.tokenize(text))

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Callables | None = None
    ) -> int:
        """Return how many tokens a conversation takes, in the model's own template."""
        offered = [convert_to_openai_tool(each) for each in tools] if tools else None
        body = self._body(messages, None, {"tools": offered})

        async def count(swarm: Swarm) -> int:
            gateway = self._gateway_of(swarm)
            return await gateway.count_tokens(_judged(body, gateway))

        with _in_words_of_langchain():
            return self._plain.run(count)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, run_manager, **kwargs))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return await agenerate_from_stream(self._astream(messages, stop, run_manager, **kwargs))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        body = self._body(messages, stop, kwargs)
        items = self._plain.stream(lambda swarm: self._answer(swarm, body))
        with _in_words_of_langchain(), closing(items):
            for chunk in items:
                if run_manager:
                    run_manager.on_llm_new_token(str(chunk.text), chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        if isinstance(self.swarm, SyncSwarm):
            async for chunk in super()._astream(messages, stop, None, **kwargs):
                if run_manager:
                    await run_manager.on_llm_new_token(str(chunk.text), chunk=chunk)
                yield chunk
            return
        body = self._body(messages, stop, kwargs)
        items = self.swarm.stream(lambda swarm: self._answer(swarm, body))
        with _in_words_of_langchain():
            async with aclosing(items):
                async for chunk in items:
                    if run_manager:
                        await run_manager.on_llm_new_token(str(chunk.text), chunk=chunk)
                    yield chunk

    @property
    def _plain(self) -> SyncSwarm:
        return self.swarm if isinstance(self.swarm, SyncSwarm) else self.swarm.plain

    def _own(self) -> dict[str, Any]:
        """Return what is set here, in the words of OpenAI's interface."""
        names = ("temperature", "top_p", "seed", "max_tokens", "stop", "enable_thinking")
        found = {name: getattr(self, name) for name in names}
        return {name: value for name, value in found.items() if value is not None}

    def _body(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, more: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return a request to ``/v1/chat/completions`` that asks the same."""
        said = []
        for each in messages:
            try:
                found = convert_to_openai_messages([each])
            except ValueError as error:
                raise ModelInvalidRequestError(str(error)) from error
            if isinstance(each, AIMessage):
                (message,) = found
                thoughts, words = _heard(message["content"])
                message["content"] = words
                if thoughts := each.additional_kwargs.get("reasoning_content", thoughts):
                    message["reasoning_content"] = thoughts
            said += found
        ended = {"stop": stop} if stop is not None else {}
        return {**self._own(), **self.model_kwargs, **more, **ended, "messages": said}

    def _gateway_of(self, swarm: Swarm) -> Gateway:
        """Return what judges and answers here; it is made once, where the swarm is."""
        if self._gateway is None:
            advice = swarm.client.model.advice
            sampling = sampling_of(USUAL, advice.sampling)
            how = ChatOptions(sampling, system=advice.system)
            self._gateway = Gateway(swarm, how, is_own=False)
        return self._gateway

    async def _answer(
        self, swarm: Swarm, body: Mapping[str, Any]
    ) -> AsyncGenerator[ChatGenerationChunk, None]:
        gateway, request = self._gateway_of(swarm), secrets.token_hex(ID_BYTES)
        question = _judged(body, gateway)
        until = trio.current_time() + (float("inf") if self.timeout is None else self.timeout)
        async with aclosing(gateway.answer(question, request)) as parts:
            while True:
                with trio.fail_at(until):
                    part = await anext(parts, None)
                if part is None:
                    return
                if (chunk := _chunk(part, request, swarm.model_name)) is not None:
                    yield ChatGenerationChunk(message=chunk)


async def _context(swarm: Swarm) -> int:
    return swarm.client.context_max()


def _judged(body: Mapping[str, Any], gateway: Gateway) -> Question:
    """Judge a request; raises Problem, also where it says what nobody here knows."""
    question = chat_question(body, gateway.defaults, secrets.randbelow(SEEDS))
    if question.ignored:
        raise Problem(400, f"no such parameter is known here: {', '.join(question.ignored)}")
    if question.choices > 1:
        raise Problem(400, "n must be 1: ask several times, as with batch")
    return question


def _heard(content: str | list[Any]) -> tuple[str, str | list[Any]]:
    """Return the thoughts of an answer that is given back, and its words.

    Calls stand among its blocks too, and beside them. What is neither stays, to be refused by name.
    """
    if isinstance(content, str):
        return "", content
    thoughts = "".join(each.get("reasoning", "") for each in content)
    rest = [each for each in content if each.get("type") not in _NO_WORDS]
    if all(each.get("type") == "text" for each in rest):
        return thoughts, "".join(each["text"] for each in rest)
    return thoughts, rest


_NO_WORDS = {"reasoning", "thinking", "redacted_thinking", "tool_call", "tool_call_chunk"}
"""Blocks of an assistant's message that say nothing to the user."""


def _chunk(part: Part, request: str, model_name: str) -> AIMessageChunk | None:
    """Return what a part of an answer is to LangChain."""
    match part:
        case Said(text=text):
            return AIMessageChunk(content=text)
        case Thinks(text=text):
            return AIMessageChunk(content="", additional_kwargs={"reasoning_content": text})
        case CallOpens(choice, number, name):
            return _call(number, call_id(request, choice, number), name, "")
        case CallPiece(_, number, text):
            return _call(number, None, None, text)
        case Finished():
            return _last(part, model_name)
        case _:
            return None


def _call(number: int, known_as: str | None, name: str | None, text: str) -> AIMessageChunk:
    chunk = ToolCallChunk(name=name, args=text, id=known_as, index=number, type="tool_call_chunk")
    return AIMessageChunk(content="", tool_call_chunks=[chunk])


def _last(found: Finished, model_name: str) -> AIMessageChunk:
    """Return what ends an answer: what it took, who made it, and what was checked of it."""
    answer, account = found.answer, account_of(found)
    del account["receipt"]  # a gateway's own
    scores = chat_scores(answer.scores_before(len(answer.text)))
    return AIMessageChunk(
        content="",
        chunk_position="last",
        usage_metadata=UsageMetadata(
            input_tokens=answer.prompt_tokens,
            output_tokens=answer.tokens,
            total_tokens=answer.prompt_tokens + answer.tokens,
            input_token_details=InputTokenDetails(cache_read=answer.reused_tokens),
            output_token_details=OutputTokenDetails(reasoning=found.thought_tokens),
        ),
        response_metadata={
            "model_provider": PROVIDER,
            "model_name": model_name,
            "finish_reason": found.finish,
            **({"logprobs": scores} if scores else {}),
            **account,
        },
    )


_BY_STATUS: Mapping[int, type[ModelError]] = {
    400: ModelInvalidRequestError,
    429: ModelRateLimitError,
    503: ModelConnectionError,
}


@contextmanager
def _in_words_of_langchain() -> Iterator[None]:
    """Raise what goes wrong as LangChain's errors, from our own."""
    try:
        yield
    except (Problem, P2pinferError) as error:
        problem = error if isinstance(error, Problem) else problem_of(error)
        kind = _BY_STATUS.get(problem.status, ModelAPIError)
        if problem.code == "context_length_exceeded":
            kind = ContextOverflowError
        raise kind(problem.message) from error
    except trio.TooSlowError as error:
        raise ModelTimeoutError("the answer took longer than its timeout") from error
    except (trio.RunFinishedError, trio.Cancelled) as error:
        raise ModelConnectionError("the swarm was left: ask while it is joined") from error


class _WholeJson(JsonOutputParser):
    """Reads JSON that is complete: what was cut short is no answer, though it could be mended."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Return what it says; raises OutputParserException."""
        message = getattr(result[0], "message", None)
        told = message.response_metadata if isinstance(message, AIMessage) else {}
        if not partial and told.get("finish_reason") == "length":
            raise OutputParserException(
                "the answer was cut short before its JSON was complete: allow more tokens",
                llm_output=result[0].text,
            )
        return super().parse_result(result, partial=partial)


class _WholeObject(_WholeJson, PydanticOutputParser):  # type: ignore[type-arg] # of any class
    """Reads the same into an object of a pydantic class."""
