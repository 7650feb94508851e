"""What OpenTelemetry is told of a question, in the words of its conventions."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import error_attributes, gen_ai_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.trace import SpanKind
from trio.testing import MockClock

from p2pinfer.api import telemetry
from p2pinfer.api.telemetry import Telemetry, is_wanted, open_telemetry
from p2pinfer.core.errors import UserError
from tests.support.fake_gateway import FakeClient, fake_gateway, http

SAID = "the secret word is parsley"
CHAT = {"model": "default", "messages": [{"role": "user", "content": SAID}], "max_tokens": 4}
KNOWN = {
    value
    for module in (gen_ai_attributes, error_attributes)
    for value in vars(module).values()
    if isinstance(value, str)
}
KNOWN_METRICS = {value for value in vars(gen_ai_metrics).values() if isinstance(value, str)}

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@dataclass
class Told:
    """A gateway that keeps what it tells in memory."""

    client: httpx.AsyncClient
    swarm: FakeClient
    spans: InMemorySpanExporter
    reader: InMemoryMetricReader

    def span(self) -> ReadableSpan:
        """Return the only span."""
        (found,) = self.spans.get_finished_spans()
        return found

    def points(self) -> dict[str, list[Any]]:
        """Return the points of each metric."""
        found: dict[str, list[Any]] = {}
        data = self.reader.get_metrics_data()
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                found |= {each.name: [*each.data.data_points] for each in scope.metrics}
        return found


@asynccontextmanager
async def told(*, content: bool = False) -> AsyncIterator[Told]:
    """Run a gateway before fakes."""
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = (
        TracerProvider(shutdown_on_exit=False),
        MeterProvider([reader], shutdown_on_exit=False),
    )
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    kept = Telemetry(tracers.get_tracer("test"), meters.get_meter("test"), content=content)
    async with fake_gateway(telemetry=kept) as (_, swarm, app), http(app) as client:
        yield Told(client, swarm, spans, reader)
    tracers.shutdown()
    meters.shutdown()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_question_is_a_span_and_some_measurements(
    stream: bool, prompts: list[str], autojump_clock: MockClock
) -> None:
    """All names are the conventions'; nothing of what was said is told; the trace goes on."""
    asked = CHAT | {"stream": stream, "seed": 7, "temperature": 0.5}
    async with told() as gateway:
        gateway.swarm.made.ends.machine.decode_s = 0.1
        header = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        reply = await gateway.client.post("/v1/chat/completions", json=asked, headers=header)
        assert reply.status_code == 200
        span, points = gateway.span(), gateway.points()
    assert span.attributes
    attributes: Mapping[str, Any] = span.attributes
    assert {*attributes} <= KNOWN
    assert {*points} <= KNOWN_METRICS
    assert span.name == "chat Toy Model"
    assert span.kind is SpanKind.SERVER
    assert span.context
    assert span.parent
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert attributes["gen_ai.response.id"] == reply.headers["x-request-id"]
    assert attributes["gen_ai.request.seed"] == 7
    assert attributes["gen_ai.usage.output_tokens"] == 4
    assert attributes["gen_ai.usage.cache_read.input_tokens"] == 0
    assert attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert "parsley" not in span.to_json()
    (duration,) = points["gen_ai.server.request.duration"]
    (first,) = points["gen_ai.server.time_to_first_token"]
    (each,) = points["gen_ai.server.time_per_output_token"]
    assert 0 < first.sum < duration.sum
    assert each.sum == pytest.approx((duration.sum - first.sum) / 3)
    tokens = {p.attributes["gen_ai.token.type"]: p.sum for p in points["gen_ai.client.token.usage"]}
    assert tokens == {"input": attributes["gen_ai.usage.input_tokens"], "output": 4}


async def test_content_is_told_where_it_is_asked_for(
    prompts: list[str], autojump_clock: MockClock
) -> None:
    """Question and answer, in the conventions' own shape."""
    async with told(content=True) as gateway:
        reply = await gateway.client.post("/v1/chat/completions", json=CHAT)
        attributes = gateway.span().attributes
    assert attributes
    said = json.loads(str(attributes["gen_ai.input.messages"]))
    assert said[-1] == {"role": "user", "parts": [{"type": "text", "content": SAID}]}
    answer = reply.json()["choices"][0]["message"]["content"]
    assert json.loads(str(attributes["gen_ai.output.messages"])) == [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": answer}],
            "finish_reason": "length",
        }
    ]


async def test_a_question_that_fails_says_with_what(
    prompts: list[str], autojump_clock: MockClock
) -> None:
    """The kind of error, but not its words: these may quote the prompt."""
    async with told() as gateway:
        gateway.swarm.absent = "nobody serves layers 1:9"
        asked = {"model": "default", "prompt": SAID}
        assert (await gateway.client.post("/v1/completions", json=asked)).status_code == 503
        span, points = gateway.span(), gateway.points()
    assert span.attributes
    assert span.name == "text_completion Toy Model"
    assert span.attributes["error.type"] == "NobodyServes"
    assert not span.status.is_ok
    assert "nobody serves" not in span.to_json()
    (duration,) = points["gen_ai.server.request.duration"]
    assert duration.attributes["error.type"] == "NobodyServes"


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
async def test_it_is_off_unless_variables_ask(variables: dict[str, str], wanted: bool) -> None:
    """The usual ones; none of them names a collector by default."""
    assert is_wanted(variables) is wanted
    if not wanted:
        async with open_telemetry(variables) as nothing:
            assert nothing is None


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER is zipkin: name otlp"),
        (
            {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL is grpc, and a gateway speaks http/protobuf",
        ),
    ],
)
async def test_what_is_not_there_is_refused(variables: dict[str, str], words: str) -> None:
    """In a sentence that says what to name instead."""
    with pytest.raises(UserError, match=words):
        async with open_telemetry(variables):
            pass


async def test_without_the_extra_a_person_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The gateway runs all the same."""
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk", None)
    told: list[str] = []
    monkeypatch.setattr(telemetry, "note", told.append)
    async with open_telemetry({"OTEL_TRACES_EXPORTER": "otlp"}) as nothing:
        assert nothing is None
    assert told == [telemetry.NOT_INSTALLED]


@pytest.fixture
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Provide an OTLP collector: its address, and what it was sent."""
    sent: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", sent
        server.shutdown()
        thread.join()


async def test_a_collector_gets_all_when_the_gateway_ends(
    collector: tuple[str, list[tuple[str, bytes]]],
    prompts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over OTLP, under the service's name."""
    address, sent = collector
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": address}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)  # the exporters read it themselves
    async with open_telemetry(variables) as kept:
        assert kept
        assert not kept.content
        async with fake_gateway(telemetry=kept) as (_, _, app), http(app) as client:
            assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
    assert {path for path, _ in sent} == {"/v1/traces", "/v1/metrics"}
    for _, body in sent:
        assert b"p2pinfer" in body
        assert b"gen_ai" in body
        assert b"parsley" not in body
