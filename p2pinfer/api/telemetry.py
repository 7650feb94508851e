"""What OpenTelemetry is told of each question, by its conventions for generative models.

Nothing is told unless the usual ``OTEL_*`` variables say where to. Prompts and answers are left out
unless the conventions' own variable asks for them. A client's ``traceparent`` becomes the parent.

Names: https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import trio
from starlette.types import ASGIApp, Receive, Scope, Send

from p2pinfer.api.questions import Question
from p2pinfer.client.answer import Answer
from p2pinfer.client.speech import Hearing
from p2pinfer.core.errors import UserError
from p2pinfer.logs import note

if TYPE_CHECKING:  # an extra, which is imported where it is wanted
    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Tracer

WANTED_BY: Final = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    "OTEL_TRACES_EXPORTER",
    "OTEL_METRICS_EXPORTER",
)
"""Any of these asks for telemetry."""

CONTENT_VARIABLE: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
CONTENT_VALUES: Final = ("true", "span_only", "span_and_event")

NOT_INSTALLED: Final = (
    "OTEL_* variables are set, but OpenTelemetry is not installed, so nothing is sent: install"
    " p2pinfer[otel], or unset them"
)

FLUSH_S_MAX: Final = 5.0
"""For what was not sent yet, when the gateway ends: a collector may be gone."""

CONTENT_CHARS_MAX: Final = 128 * 1024
"""Of a span's attribute, where content is asked for: collectors refuse messages of some MiB."""

TOKEN_BUCKETS: Final = tuple(4**power for power in range(14))
DURATION_BUCKETS_S: Final = tuple(0.01 * 2**power for power in range(14))
FIRST_TOKEN_BUCKETS_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
PER_TOKEN_BUCKETS_S: Final = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
)


class Telemetry:
    """Makes a span and some measurements of each question."""

    def __init__(
        self,
        tracer: "Tracer",
        meter: "Meter",
        *,
        content: bool = False,
        now: Callable[[], float] = trio.current_time,
    ) -> None:
        self._tracer, self.content, self.now = tracer, content, now

        def histogram(name: str, unit: str, text: str, buckets: tuple[float, ...]) -> Any:
            return meter.create_histogram(
                name, unit, text, explicit_bucket_boundaries_advisory=buckets
            )

        self.tokens = histogram(
            "gen_ai.client.token.usage", "{token}", "Tokens of prompts and answers.", TOKEN_BUCKETS
        )
        self.duration = histogram(
            "gen_ai.server.request.duration",
            "s",
            "From a question's arrival to the end of its answers.",
            DURATION_BUCKETS_S,
        )
        self.first_token = histogram(
            "gen_ai.server.time_to_first_token",
            "s",
            "From a question's arrival to its first token.",
            FIRST_TOKEN_BUCKETS_S,
        )
        self.per_token = histogram(
            "gen_ai.server.time_per_output_token",
            "s",
            "Between two tokens of an answer, on average.",
            PER_TOKEN_BUCKETS_S,
        )

    def begin(self, question: Question, request: str, model: str) -> "Observed":
        """Begin to observe a question; ``request`` is the id that its reply has."""
        from opentelemetry.trace import SpanKind

        about = {
            "gen_ai.operation.name": "chat" if question.messages else "text_completion",
            "gen_ai.provider.name": "p2pinfer",
            "gen_ai.request.model": model,
            "gen_ai.response.model": model,
        }
        span = self._tracer.start_span(
            f"{about['gen_ai.operation.name']} {model}",
            kind=SpanKind.SERVER,
            attributes={**about, "gen_ai.response.id": request, **_asked(question)},
        )
        if self.content and question.messages:
            messages = [_message(each) for each in question.messages]
            span.set_attribute("gen_ai.input.messages", _json(messages))
        return Observed(self, span, about)


class _Made(NamedTuple):
    """One of a question's answers."""

    answer: Answer
    speech: Hearing | None
    finish: str


class Observed:
    """One question while it is answered."""

    def __init__(self, telemetry: Telemetry, span: Any, about: dict[str, str]) -> None:
        self._telemetry, self._span, self._about = telemetry, span, about
        self._began_at = telemetry.now()
        self._first_at: float | None = None
        self._made: list[_Made] = []

    def token(self) -> None:
        """Note that there is something of an answer by now."""
        if self._first_at is None:
            self._first_at = self._telemetry.now()
            self._telemetry.first_token.record(self._first_at - self._began_at, self._about)

    def finished(self, answer: Answer, speech: Hearing | None, finish: str) -> None:
        """Note an answer that is complete, what it is made of, and why it ended."""
        self._made.append(_Made(answer, speech, finish))

    def end(self, error: BaseException | None = None) -> None:
        """Send what is known; ``error`` is what ended it early."""
        from opentelemetry.trace import Status, StatusCode

        telemetry, about, span = self._telemetry, self._about, self._span
        now = telemetry.now()
        if error is not None:
            about = {**about, "error.type": type(error).__qualname__}
            span.set_attribute("error.type", about["error.type"])
            span.set_status(Status(StatusCode.ERROR))  # its text may quote the prompt
        telemetry.duration.record(now - self._began_at, about)
        answers = [each.answer for each in self._made]
        if answers:
            made = sum(answer.tokens for answer in answers)
            given = sum(answer.prompt_tokens for answer in answers)
            span.set_attributes(
                {
                    "gen_ai.usage.input_tokens": given,
                    "gen_ai.usage.cache_read.input_tokens": sum(a.reused_tokens for a in answers),
                    "gen_ai.usage.output_tokens": made,
                    "gen_ai.response.finish_reasons": [each.finish for each in self._made],
                }
            )
            if thought := sum(each.speech.thought_tokens for each in self._made if each.speech):
                span.set_attribute("gen_ai.usage.reasoning.output_tokens", thought)
            for kind, count in (("input", given), ("output", made)):
                telemetry.tokens.record(count, {**self._about, "gen_ai.token.type": kind})
            if self._first_at is not None and made > 1:
                telemetry.per_token.record((now - self._first_at) / (made - 1), self._about)
            if telemetry.content:
                said = [_said(each) for each in self._made]
                span.set_attribute("gen_ai.output.messages", _json(said))
        span.end()


class ParentSpan:
    """ASGI middleware: what is done for a request belongs to the trace that its client names."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        from opentelemetry import context
        from opentelemetry.propagate import extract

        named = {name.decode("latin-1"): value.decode("latin-1") for name, value in _headers(scope)}
        token = context.attach(extract(named))
        try:
            await self._app(scope, receive, send)
        finally:
            context.detach(token)


def _headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = scope.get("headers", [])
    return found


def _asked(question: Question) -> dict[str, Any]:
    """Return the attributes of how an answer is to be drawn, without what has no effect."""
    how, sampling = question.how, question.how.sampling
    found = {
        "gen_ai.request.max_tokens": how.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty or None,
        "gen_ai.request.presence_penalty": sampling.presence_penalty or None,
        "gen_ai.request.seed": sampling.seed,
        "gen_ai.request.choice.count": question.choices if question.choices > 1 else None,
        "gen_ai.request.stream": question.stream,
        "gen_ai.output.type": "json" if question.shape else "text",
    }
    return {name: value for name, value in found.items() if value is not None}


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message as the conventions' schema has it."""
    parts: list[dict[str, Any]] = []
    if message.get("content"):
        parts.append({"type": "text", "content": message["content"]})
    for call in message.get("tool_calls") or ():
        called = call["function"]
        parts.append({"type": "tool_call", "id": call.get("id"), **called})
    return {"role": message["role"], "parts": parts}


def _said(made: _Made) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    speech = made.speech
    words = made.answer.text if speech is None else speech.words
    if words:
        parts.append({"type": "text", "content": words})
    parts += [
        {"type": "tool_call", "name": call.name, "arguments": call.arguments}
        for call in (speech.calls if speech else ())
    ]
    return {"role": "assistant", "parts": parts, "finish_reason": made.finish}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)[:CONTENT_CHARS_MAX]


def is_wanted(environ: Mapping[str, str]) -> bool:
    """Whether the environment asks for telemetry."""
    is_off = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return not is_off and any(environ.get(name, "").strip() for name in WANTED_BY)


@asynccontextmanager
async def open_telemetry(environ: Mapping[str, str]) -> AsyncIterator[Telemetry | None]:
    """Tell what the environment asks for during the block; None where it asks for nothing.

    Raises:
        UserError: a variable names an exporter or a protocol that is not there.
    """
    if not is_wanted(environ):
        yield None
        return
    try:
        import opentelemetry.sdk  # noqa: F401 -- is it there?
    except ImportError:
        note(NOT_INSTALLED)
        yield None
        return
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    is_named = "OTEL_SERVICE_NAME" in environ or "service.name" in environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    service = {"service.version": version("p2pinfer")}
    resource = Resource.create(service if is_named else {"service.name": "p2pinfer", **service})
    traces, metrics = _exporters(environ)
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
    if traces:
        tracers.add_span_processor(BatchSpanProcessor(traces))
    readers = [PeriodicExportingMetricReader(metrics)] if metrics else []
    meters = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
    content = environ.get(CONTENT_VARIABLE, "").strip().lower() in CONTENT_VALUES
    try:
        yield Telemetry(
            tracers.get_tracer("p2pinfer"), meters.get_meter("p2pinfer"), content=content
        )
    finally:

        def shut_down() -> None:
            tracers.shutdown()
            meters.shutdown()

        with trio.move_on_after(FLUSH_S_MAX, shield=True):
            await trio.to_thread.run_sync(shut_down, abandon_on_cancel=True)


def _exporters(environ: Mapping[str, str]) -> tuple[Any, Any]:
    """Return what sends traces and metrics; None for what is not to be sent."""
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics.export import ConsoleMetricExporter
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter

    made = []
    for signal, otlp, console in (
        ("TRACES", OTLPSpanExporter, ConsoleSpanExporter),
        ("METRICS", OTLPMetricExporter, ConsoleMetricExporter),
    ):
        protocol = environ.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL") or environ.get(
            "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
        )
        named = environ.get(f"OTEL_{signal}_EXPORTER", "").strip() or "otlp"
        if named == "otlp" and protocol != "http/protobuf":
            raise UserError(
                f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol}, and a gateway speaks http/protobuf:"
                " name that, and the collector's port for it (4318)"
            )
        if named not in ("otlp", "console", "none"):
            raise UserError(f"OTEL_{signal}_EXPORTER is {named}: name otlp, console or none")
        made.append(None if named == "none" else otlp() if named == "otlp" else console())
    return made[0], made[1]
