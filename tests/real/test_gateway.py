"""The gateway with three real peers, asked by the official client and by hand."""

import json
import math
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import openai
import pydantic
import pytest

from p2pinfer.core.limits import SESSIONS_PER_REQUESTER_DEFAULT
from tests.support.gateways import RunningGateway, running_gateway
from tests.support.processes import COMMAND, POLL_S, environment, start_peers

pytestmark = pytest.mark.real

STREAMS = 20
"""More than twice as many as a stranger may have at a peer, and fewer than the gateway's own."""

TOKENS = 32

SLOWEST_TO_FASTEST_MAX = 4.0
"""None starves."""

ROUNDS_MAX = 3
"""On a machine whose other work may be in one stream's way."""

FREE_S_MAX = 5.0

HEALTH_S_MAX = 60.0
"""For a stopped or resumed peer to be noticed, on a busy machine."""

SAY = [{"role": "user", "content": "Name three colours."}]


@pytest.fixture(scope="module")
def gateway(home: Path) -> Iterator[RunningGateway]:
    """Provide a gateway with three peers of its own."""
    with running_gateway(home, "--local", "3", "--context", "1024") as running:
        yield running


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[openai.OpenAI]:
    """Provide the official client."""
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_official_client_lists_asks_and_streams(client: openai.OpenAI) -> None:
    """The same text whole and in pieces, both with usage."""
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id
    asked = {"model": model.id, "messages": SAY, "max_tokens": 6, "temperature": 0}
    whole = client.chat.completions.create(**asked)  # type: ignore[call-overload] # a dict of both
    assert whole.choices[0].message.content
    assert whole.usage.completion_tokens == 6
    assert whole.choices[0].finish_reason == "length"
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})  # type: ignore[call-overload]
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0


def test_official_client_completes_text(client: openai.OpenAI) -> None:
    """The older interface, whole and streamed."""
    found = client.completions.create(
        model="default", prompt="The sky is", max_tokens=4, temperature=0
    )
    pieces = client.completions.create(
        model="default", prompt="The sky is", max_tokens=4, temperature=0, stream=True
    )
    assert found.choices[0].text
    assert "".join(piece.choices[0].text for piece in pieces) == found.choices[0].text


def test_official_client_gets_log_probabilities(client: openai.OpenAI) -> None:
    """For chats and completions, whole and streamed: those of the answer's tokens."""
    asked = {"model": "default", "messages": SAY, "max_tokens": 6, "temperature": 0}
    asked |= {"logprobs": True, "top_logprobs": 3, "seed": 1}
    whole = client.chat.completions.create(**asked).choices[0]  # type: ignore[call-overload]
    assert "".join(each.token for each in whole.logprobs.content) == whole.message.content
    for each in whole.logprobs.content:
        likeliest = [other.logprob for other in each.top_logprobs]
        assert likeliest == sorted(likeliest, reverse=True)
        assert each.logprob <= likeliest[0]  # another one where a penalty forbids the first
        assert sum(map(math.exp, likeliest)) <= 1
    chunks = client.chat.completions.create(**asked, stream=True)  # type: ignore[call-overload]
    told = [c.choices[0].logprobs.content for c in chunks if c.choices[0].logprobs]
    assert [each.logprob for content in told for each in content] == [
        each.logprob for each in whole.logprobs.content
    ]
    found = client.completions.create(
        model="default", prompt="The sky is", max_tokens=4, temperature=0, logprobs=2
    ).choices[0]
    assert found.logprobs
    assert "".join(found.logprobs.tokens or []) == found.text
    assert [len(each) in {2, 3} for each in found.logprobs.top_logprobs or []] == [True] * 4


def test_certificate_of_an_answer_is_fetched_and_holds(
    gateway: RunningGateway, home: Path, tmp_path: Path
) -> None:
    """A machine that has the layers can check it offline."""
    asked = {"model": "default", "messages": SAY, "max_tokens": 6}
    reply = httpx.post(f"{gateway.url}/v1/chat/completions", json=asked, timeout=60)
    assert reply.headers["x-p2pinfer-trust"].startswith("held; stages=3")
    link = reply.headers["x-p2pinfer-receipt"]
    assert link == reply.json()["choices"][0]["p2pinfer"]["receipt"]
    file = tmp_path / "certificate"
    file.write_bytes(httpx.get(f"{gateway.url}{link}").content)
    checked = subprocess.run(
        [*COMMAND, "verify", str(file), "--json"],
        capture_output=True,
        check=True,
        env=environment(home),
        timeout=120,
    )
    found = json.loads(checked.stdout)
    assert found["answer"] == reply.json()["choices"][0]["message"]["content"]


def test_metrics_count_bytes_and_tokens(gateway: RunningGateway) -> None:
    """A question crosses the network, and both directions show it."""
    before = metrics(gateway)
    asked = {"model": "default", "prompt": "One, two,", "max_tokens": 3}
    httpx.post(f"{gateway.url}/v1/completions", json=asked, timeout=60)
    after = metrics(gateway)
    for direction in ("sent", "received"):
        name = f'p2pinfer_network_bytes_total{{direction="{direction}"}}'
        assert after[name] - before[name] > 3 * 1000  # a row of 576 numbers a token, or more
    answers = 'p2pinfer_tokens_total{role="answer"}'
    assert after[answers] - before[answers] == 3


def metrics(gateway: RunningGateway) -> dict[str, float]:
    """Return what Prometheus would read."""
    text = httpx.get(f"{gateway.url}/metrics").text
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


# The client leaves generators of its own to the garbage collector.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <async_generator:pytest.PytestUnraisableExceptionWarning"
)
async def test_official_async_client_under_trio(gateway: RunningGateway) -> None:
    """It streams, and raises its own errors from our error bodies."""
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key="none", max_retries=0
    ) as client:
        stream = await client.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=5,
            stream=True,
        )
        async with stream:
            pieces = [chunk async for chunk in stream]
        *_, ended, checked = (piece.choices[0] for piece in pieces)
        assert ended.finish_reason == "length"
        assert checked.finish_reason is None
        assert checked.model_extra
        assert checked.model_extra["p2pinfer"]["trust"]["held"]
        async with client.chat.completions.stream(
            model="default", messages=[{"role": "user", "content": "Say yes."}], max_tokens=200
        ) as helped:
            whole = await helped.get_final_completion()
        assert whole.choices[0].finish_reason == "stop"
        assert whole.choices[0].message.content
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("gpt-4o")
        with pytest.raises(openai.BadRequestError) as caught:
            await client.completions.create(model="default", prompt="x " * 2000)
        assert caught.value.code == "context_length_exceeded"


def test_next_turn_of_a_conversation_is_quick(client: openai.OpenAI) -> None:
    """Rows that the stages hold are not sent again."""
    first = client.chat.completions.create(
        model="default",
        messages=SAY,  # type: ignore[arg-type] # plain dicts are what people send
        max_tokens=16,
        temperature=0,
    )
    said = first.choices[0].message.content
    turn = [*SAY, {"role": "assistant", "content": said}, {"role": "user", "content": "And one?"}]
    second = client.chat.completions.create(model="default", messages=turn, max_tokens=4)  # type: ignore[arg-type]
    assert first.usage
    assert second.usage
    assert second.usage.prompt_tokens_details
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) > first.usage.prompt_tokens


def test_raw_stream_is_plain_lines(gateway: RunningGateway) -> None:
    """As `curl -N` shows it: events, each a line of JSON, then ``[DONE]``."""
    body = {"model": "default", "messages": SAY, "max_tokens": 4, "stream": True}
    asked = f"{gateway.url}/v1/chat/completions"
    with httpx.stream("POST", asked, json=body, timeout=60) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["cache-control"] == "no-cache"
        lines = [line for line in reply.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[-2][6:])["choices"][0]["p2pinfer"]["route"][0]["layers"] == "1:10"


def test_client_that_leaves_frees_its_session(gateway: RunningGateway) -> None:
    """Soon after a stream is cut off, its answer stops."""
    body = {"model": "default", "prompt": "Once upon a time", "max_tokens": 900, "stream": True}
    asked = f"{gateway.url}/v1/completions"
    with httpx.stream("POST", asked, json=body, timeout=60) as reply:
        lines = reply.iter_lines()  # dropping the iterator closes the response
        next(lines)
        assert sessions(gateway)["running"] == 1
    deadline = time.monotonic() + FREE_S_MAX
    while sessions(gateway)["running"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)  # another process: there is no event to wait for


def sessions(gateway: RunningGateway) -> dict[str, int]:
    """Return the gateway's sessions."""
    found: dict[str, int] = httpx.get(f"{gateway.url}/api/state").json()["sessions"]
    return found


def test_nonsense_on_the_socket_ends_nothing(gateway: RunningGateway) -> None:
    """Half requests, broken ones, and bytes that are not HTTP."""
    host, port = gateway.url.removeprefix("http://").split(":")
    for data in (
        b"\x00" * 1000,
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\nx",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 100_000,
        b"GET / HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
        b"GET http://[ HTTP/1.1\r\nhost: [\r\n\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(data)
    assert httpx.get(f"{gateway.url}/health").json() == {"status": "ok"}
    assert gateway.process.poll() is None


def test_many_streams_at_once_are_all_served_fairly(gateway: RunningGateway) -> None:
    """Each is as fast as the others, within the promised factor, and none waits for others' ends.

    The peers are the gateway's own, and take as many sessions as it does.
    """
    together = threading.Barrier(STREAMS)

    def one(number: int) -> tuple[float, float, float]:
        body = {
            "model": "default",
            "messages": [{"role": "user", "content": f"Tell a story about the number {number}."}],
            "max_tokens": TOKENS,
            "stream": True,
        }
        together.wait()
        begun = time.monotonic()
        with httpx.stream(
            "POST", f"{gateway.url}/v1/chat/completions", json=body, timeout=300
        ) as reply:
            lines = [(time.monotonic(), line) for line in reply.iter_lines()]
        told = [(at, line[6:]) for at, line in lines if line.startswith("data: ")]
        *chunks, (ended, done) = told
        assert done == "[DONE]"
        choices = [(at, json.loads(chunk)["choices"][0]) for at, chunk in chunks]
        first = next(at for at, choice in choices if choice["delta"].get("content"))
        tokens: int = choices[-1][1]["p2pinfer"]["tokens"]
        return first, ended, tokens / (ended - begun)

    rounds = []
    for _ in range(ROUNDS_MAX):
        with ThreadPoolExecutor(STREAMS) as pool:
            found = list(pool.map(one, range(STREAMS)))
        speeds = [speed for *_, speed in found]
        at_once = max(sum(a <= first < b for a, b, _ in found) for first, *_ in found)
        assert at_once > SESSIONS_PER_REQUESTER_DEFAULT
        rounds.append(max(speeds) / min(speeds))
        if rounds[-1] <= SLOWEST_TO_FASTEST_MAX:
            return
    pytest.fail(f"some streams are so much slower than others: {rounds}")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "--local 3"),
        (["--local", "3", "--host", "0.0.0.0"], "P2PINFER_API_KEY"),
        (["--local", "3", "--bootstrap", "/ip4/127.0.0.1/tcp/1"], "omit it, or omit --bootstrap"),
        (["--local", "3", "--network", "other"], "--network"),
        (["--local", "3", "--port", "70000"], "--port must be from 0 to 65535"),
        (["--local", "99"], "--local must be from 0 to 16"),
    ],
)
def test_bad_options_are_refused_before_anything_starts(
    home: Path, words: list[str], sentence: str
) -> None:
    """One sentence says what to do; the exit code is that of bad input."""
    result = subprocess.run(
        [*COMMAND, "serve", *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment(home),
        timeout=60,
    )
    assert result.returncode == 2
    *notes, mistake = result.stderr.splitlines()  # a note names the peers that run here already
    assert sentence in mistake
    assert all("to reach them" in each for each in notes)


def test_taken_port_is_found_before_anything_starts(gateway: RunningGateway, home: Path) -> None:
    """No peer is started, and no model fetched, for a gateway that cannot listen."""
    port = gateway.url.rpartition(":")[2]
    words = ["serve", "--local", "3", "--port", port]
    result = subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, env=environment(home), check=False
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(r"p2pinfer: cannot listen on .*: choose another port\n", result.stderr)


def test_health_depends_on_the_only_holder_of_layers(home: Path) -> None:
    """Lost although it only froze and is still advertised; restored once it resumes."""
    peers = start_peers(home, ["1:15", "15:29"], "--model", "default", network="health")
    try:
        ways = ["--bootstrap", peers[0].address, "--network", "health", "--model", "default"]
        with running_gateway(home, *ways, "--context", "1024") as gateway:

            def wait_for(status: int) -> httpx.Response:
                deadline = time.monotonic() + HEALTH_S_MAX
                while True:
                    reply = httpx.get(f"{gateway.url}/health", timeout=60)
                    if reply.status_code == status:
                        return reply
                    assert time.monotonic() < deadline, reply.text
                    time.sleep(POLL_S)  # another process sets no event of ours

            wait_for(200)
            peers[1].process.send_signal(signal.SIGSTOP)
            reply = wait_for(503)
            assert "15:29" in reply.json()["error"]["message"]
            assert peers[1].id[-6:] in reply.json()["error"]["message"]
            peers[1].process.send_signal(signal.SIGCONT)
            wait_for(200)
    finally:
        for peer in peers:
            peer.process.send_signal(signal.SIGCONT)
            peer.stop()


class Person(pydantic.BaseModel):
    """What an answer is to be."""

    name: Annotated[str, pydantic.Field(max_length=20)]
    age: Annotated[int, pydantic.Field(ge=1, le=99)]
    traits: Annotated[list[Literal["kind", "tall"]], pydantic.Field(max_length=2)]


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Say what the weather of a place is.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "maxLength": 20},
                "unit": {"enum": ["C", "F"]},
            },
            "required": ["place", "unit"],
            "additionalProperties": False,
        },
    },
}


def test_official_client_parses_into_a_model(client: openai.OpenAI) -> None:
    """Even the smallest model gives what the class says."""
    asked: Any = {"model": "default", "messages": SAY, "response_format": Person, "max_tokens": 120}
    found = client.chat.completions.parse(**asked, temperature=0)
    assert isinstance(found.choices[0].message.parsed, Person)
    hot = client.chat.completions.parse(**asked, temperature=1.5, seed=3)
    assert isinstance(hot.choices[0].message.parsed, Person)


def test_official_client_calls_tools(client: openai.OpenAI) -> None:
    """Whole and streamed alike; then the model reads what the tool gave."""
    asked: Any = {
        "model": "default",
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "max_tokens": 100,
        "seed": 5,
        "temperature": 0.5,
    }
    (choice,) = client.chat.completions.create(**asked).choices
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    arguments = json.loads(call.function.arguments)
    assert set(arguments) == {"place", "unit"}
    assert arguments["unit"] in {"C", "F"}
    pieces = [c.choices[0] for c in client.chat.completions.create(**asked, stream=True)]
    streamed = [each for piece in pieces for each in piece.delta.tool_calls or []]
    assert {each.index for each in streamed} == {0}
    assert "".join(each.function.arguments for each in streamed) == call.function.arguments
    asked["messages"] += [
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "12 degrees and rain"},
    ]
    said = client.chat.completions.create(**{**asked, "tool_choice": "none"}).choices[0].message
    assert said.content


def test_bad_grammars_are_refused_while_others_are_answered(client: openai.OpenAI) -> None:
    """With a sentence; the engine goes on."""
    asked: Any = {"model": "default", "messages": SAY}
    for bad in ("root ::= (", "nonsense", "root ::= " + "(" * 5000):
        with pytest.raises(openai.BadRequestError, match="cannot be kept to"):
            client.chat.completions.create(**asked, extra_body={"grammar": bad})
    good = {"grammar": 'root ::= "yes" | "no"'}
    found = client.chat.completions.create(**asked, extra_body=good)
    assert found.choices[0].message.content in {"yes", "no"}
