"""The command line: parse, call one function, print, choose the exit code."""

import json
import logging
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from p2pinfer.core import errors
from p2pinfer.core.errors import P2pinferError, UserError
from p2pinfer.core.limits import CONTEXT_DEFAULT, SESSIONS_DEFAULT

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it
    from p2pinfer import node
    from p2pinfer.chat import ChatOptions
    from p2pinfer.swarm import LocalPeer

EXIT_CODES = """
Exit codes: 0 done, 1 failed, 2 unusable input, 3 nobody serves this model, 130 interrupted.
Every option can also be set as P2PINFER_<NAME>. Directories: see P2PINFER_HOME in the README.
"""

app = App(
    name="p2pinfer",
    help=f"Pool ordinary machines into a swarm that runs one language model.\n{EXIT_CODES}",
    version=version("p2pinfer"),
    help_format="plaintext",
)
bench = App(name="bench", help="Measure; prints JSON.")
app.command(bench)


def _option(name: str, text: str, **more: Any) -> Any:
    variable = f"P2PINFER_{name.upper().replace('-', '_')}"
    return Parameter(name=f"--{name}", help=text, env_var=variable, **more)


Model = Annotated[str, _option("model", "A GGUF file, or 'default': SmolLM2-135M-Instruct.")]
Network = Annotated[str, _option("network", "Swarms of other names are not seen.")]
Bootstrap = Annotated[
    tuple[str, ...],
    _option("bootstrap", "Multiaddrs of peers already in the swarm.", consume_multiple=True),
]
AsJson = Annotated[bool, _option("json", "Print one JSON object on standard output.", negative="")]
Peers = Annotated[int, _option("peers", "How many local peers share the layers.")]


@Parameter(name="*")
@dataclass(frozen=True)
class MachineFlags:
    """What may be used of this machine."""

    sessions: Annotated[int, _option("sessions", "Sessions at once.")] = SESSIONS_DEFAULT
    context: Annotated[int, _option("context", "Positions per session.")] = CONTEXT_DEFAULT
    threads: Annotated[int, _option("threads", "Engine threads; no more than free cores.")] = 1

    def machine(self) -> "node.Machine":
        """Return what these flags say."""
        from p2pinfer.node import Machine

        for name in ("sessions", "context", "threads"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1")
        return Machine(self.sessions, self.context, self.threads)


@Parameter(name="*")
@dataclass(frozen=True)
class AnswerFlags:
    """How answers are made."""

    max_tokens: Annotated[int, _option("max-tokens", "Longest answer.")] = 1024
    temperature: Annotated[float, _option("temperature", "0 is greedy.")] = 0.7
    top_k: Annotated[int, _option("top-k", "Keep the k likeliest tokens; 0 keeps all.")] = 40
    top_p: Annotated[float, _option("top-p", "Keep tokens up to this probability mass.")] = 0.95
    min_p: Annotated[float, _option("min-p", "Drop tokens less likely than this share.")] = 0.05
    repeat_penalty: Annotated[float, _option("repeat-penalty", "1 is none.")] = 1.1
    seed: Annotated[int | None, _option("seed", "Of sampling; drawn when not given.")] = None
    system: Annotated[str | None, _option("system", "A system message.")] = None
    stop: Annotated[tuple[str, ...], _option("stop", "Texts that end an answer.")] = ()
    keep_layers: Annotated[
        int, _option("keep-layers", "Layers at each end that this machine runs itself.")
    ] = 1

    def options(self) -> "ChatOptions":
        """Return what these flags say; raises UserError."""
        from p2pinfer.chat import ChatOptions
        from p2pinfer.core.sampling import Sampling

        if self.max_tokens < 1:
            raise UserError("--max-tokens must be at least 1")
        try:
            sampling = Sampling(
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                min_p=self.min_p,
                repeat_penalty=self.repeat_penalty,
                seed=secrets.randbelow(2**31) if self.seed is None else self.seed,
            )
        except ValueError as error:
            raise UserError(f"a sampling option is out of range: {error}") from error
        return ChatOptions(sampling, self.max_tokens, self.system, self.stop)


_MACHINE = MachineFlags()
_ANSWER = AnswerFlags()


@app.command
def chat(
    prompt: str | None = None,
    /,
    *,
    bootstrap: Bootstrap = (),
    model: Model = "default",
    network: Network = "main",
    as_json: AsJson = False,
    answer: AnswerFlags = _ANSWER,
    machine: MachineFlags = _MACHINE,
) -> None:
    """Chat with a model through a swarm.

    Parameters
    ----------
    prompt: str
        One question; or pipe it in. Without it the chat is interactive.
    """
    from p2pinfer.node import ClientOptions, find_model

    options = ClientOptions(
        find_model(model), bootstrap, network, answer.keep_layers, machine.machine()
    )
    _run(lambda: _talk(options, prompt, answer, as_json=as_json))


@app.command
def demo(
    prompt: str | None = None,
    /,
    *,
    peers: Peers = 3,
    model: Model = "default",
    as_json: AsJson = False,
    answer: AnswerFlags = _ANSWER,
    machine: MachineFlags = _MACHINE,
) -> None:
    """Start a swarm of local peers, each a process of its own, chat with it, and end it.

    Parameters
    ----------
    prompt: str
        One question; or pipe it in. Without it the chat is interactive.
    """
    from p2pinfer.engine.slices import open_model
    from p2pinfer.node import ClientOptions, find_model
    from p2pinfer.places import cache_dir
    from p2pinfer.swarm import local_swarm
    from p2pinfer.terminal import progress, say

    async def run() -> None:
        opened = open_model(find_model(model), cache_dir())
        done = progress(f"Starting {peers} peers for {opened.info.name} …")

        def ready(peer: "LocalPeer") -> None:
            say(f"peer …{peer.peer[-6:]} serves layers {peer.layers} in process {peer.process.pid}")

        try:
            swarm = local_swarm(
                opened, peers, keep=answer.keep_layers, machine=machine.machine(), on_ready=ready
            )
            async with swarm as running:
                done()
                ways_in = tuple(peer.addresses[0] for peer in running)
                options = ClientOptions(
                    opened.path, ways_in, "local", answer.keep_layers, machine.machine()
                )
                await _talk(options, prompt, answer, as_json=as_json)
        finally:
            done()

    _run(run)


@app.command
def join(
    *,
    layers: Annotated[str, _option("layers", "FIRST:END, the range to serve; END is not in it.")],
    model: Model = "default",
    listen: Annotated[
        tuple[str, ...], _option("listen", "Multiaddrs to listen on.", consume_multiple=True)
    ] = ("/ip4/0.0.0.0/tcp/0",),
    bootstrap: Bootstrap = (),
    network: Network = "main",
    identity: Annotated[
        Path | None, _option("identity", "The key's file; made when it is not there.")
    ] = None,
    as_json: AsJson = False,
    until_stdin_closes: Annotated[bool, Parameter(show=False, negative="")] = False,
    transport: Annotated[str, Parameter(show=False)] = "libp2p",
    machine: MachineFlags = _MACHINE,
) -> None:
    """Lend this machine to a swarm: serve a range of a model's layers."""
    import trio

    from p2pinfer.node import PeerOptions, Serving, find_model, serve_peer
    from p2pinfer.terminal import progress

    first, end = _parse_layers(layers)
    options = PeerOptions(
        model=find_model(model),
        first=first,
        end=end,
        listen=listen,
        bootstrap=bootstrap,
        network=network,
        identity=identity,
        machine=machine.machine(),
        transport=transport,
    )

    async def run() -> None:
        stop = trio.Event()
        done = progress(f"Loading layers {layers} …") if not as_json else lambda: None

        def ready(serving: Serving) -> None:
            done()
            _print_ready(serving, model, network, as_json=as_json)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_on_signal, stop)
            if until_stdin_closes:
                nursery.start_soon(_stop_at_end_of_input, stop)
            try:
                await serve_peer(options, ready, stop)
            finally:
                done()
            nursery.cancel_scope.cancel()

    _run(run)


def _print_ready(serving: "node.Serving", model: str, network: str, *, as_json: bool) -> None:
    """Print who serves what, and the line that the next machine should type."""
    layers = serving.model.info.layers
    if as_json:
        ready = {
            "peer": serving.peer,
            "addresses": serving.addresses,
            "model": serving.model.id,
            "layers": f"{serving.first}:{serving.end}",
        }
        print(json.dumps(ready), flush=True)
        return
    print(f"peer id     {serving.peer}")
    for address in serving.addresses:
        print(f"address     {address}")
    print(f"model       {serving.model.info.name} ({serving.model.id[:12]}…)")
    print(f"layers      {serving.first}:{serving.end} of {layers}")
    more = "" if model == "default" else f" --model {model}"
    more += "" if network == "main" else f" --network {network}"
    address = serving.addresses[-1] if serving.addresses else "ADDRESS"
    if serving.end < layers - 1:
        print("the next machine types")
        print(f"  p2pinfer join --layers {serving.end}:{layers - 1} --bootstrap {address}{more}")
    print("and whoever wants to chat")
    print(f"  p2pinfer chat --bootstrap {address}{more}")
    print("ready; Ctrl-C to leave", flush=True)


async def _stop_on_signal(stop: Any) -> None:
    """First Ctrl-C leaves in good order, the second at once."""
    import trio

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            if stop.is_set():
                sys.exit(errors.EXIT_INTERRUPTED)
            print("leaving", file=sys.stderr)
            stop.set()


async def _stop_at_end_of_input(stop: Any) -> None:
    """Leave when whoever started this process is gone."""
    import trio

    async with trio.lowlevel.FdStream(0) as stdin:
        while await stdin.receive_some():
            pass
    stop.set()


async def _talk(
    options: "node.ClientOptions", prompt: str | None, answer: AnswerFlags, *, as_json: bool
) -> None:
    """Answer one question, or converse on a terminal."""
    from p2pinfer.chat import open_conversation
    from p2pinfer.node import open_client
    from p2pinfer.places import state_dir
    from p2pinfer.terminal import answer_once, converse, piped_question, progress, say

    question = prompt or piped_question()
    if question is None and as_json:
        raise UserError("--json answers one question: type it behind the command, or pipe it in")
    done = progress("Joining the swarm …")
    try:
        async with open_client(options) as client:
            done()
            async with open_conversation(client, answer.options(), say) as conversation:
                if question is not None:
                    await answer_once(conversation, question, as_json=as_json)
                else:
                    await converse(conversation, state_dir() / "chat_history")
    finally:
        done()


@bench.command(name="decode")
def bench_decode(
    *,
    peers: Peers = 3,
    model: Model = "default",
    sessions: Annotated[int, _option("sessions", "Also decode in this many at once.")] = 1,
    tokens: Annotated[int, _option("tokens", "Tokens per answer.")] = 128,
    runs: Annotated[int, _option("runs", "Interleaved runs.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Compare a local swarm with llama.cpp alone: same file, same tokens, same run."""
    from p2pinfer.bench.decode import decode_bench
    from p2pinfer.node import find_model

    path = find_model(model)
    measure = partial(decode_bench, path, peers, tokens=tokens, runs=runs, sessions=sessions)
    _run(lambda: _print_report(measure, as_json=as_json))


@bench.command(name="transport")
def bench_transport(
    *,
    rounds: Annotated[int, _option("rounds", "Interleaved rounds.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Compare our muxer with libp2p's own: two processes on loopback."""
    from p2pinfer.bench.transport import transport_bench

    _run(lambda: _print_report(partial(transport_bench, rounds), as_json=as_json))


async def _print_report(measure: Callable[[], Awaitable[dict[str, Any]]], *, as_json: bool) -> None:
    """Measure, and print the result as JSON, on one line if a program reads it."""
    from p2pinfer.terminal import progress

    done = progress("Measuring …")
    try:
        report = await measure()
    finally:
        done()
    print(json.dumps(report, indent=None if as_json else 2))


def _parse_layers(text: str) -> tuple[int, int]:
    first, colon, end = text.partition(":")
    if not (colon and first.isdecimal() and end.isdecimal()):
        raise UserError(f"--layers {text} is not a range such as 10:20")
    return int(first), int(end)


def _run(main: Callable[[], Awaitable[None]]) -> None:
    """Run a command's main task; raises its lone exception."""
    import trio

    with errors.lone_errors():
        trio.run(main)


def main() -> None:
    """Run the command line, and turn what goes wrong into a sentence and an exit code."""
    logging.basicConfig(level=logging.WARNING, format="p2pinfer: %(message)s")
    try:
        with errors.lone_errors():
            app()
    except P2pinferError as error:
        print(f"p2pinfer: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(errors.EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.exit(errors.EXIT_FAILED)


if __name__ == "__main__":
    main()
