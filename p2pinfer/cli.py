"""The command line: parse, call one function, print, choose the exit code."""

import logging
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError

from p2pinfer.core import errors
from p2pinfer.core.errors import P2pinferError, UserError
from p2pinfer.flags import (
    ANSWER,
    MACHINE,
    REACH,
    AnswerFlags,
    AsJson,
    Bootstrap,
    MachineFlags,
    Model,
    Network,
    Peers,
    Quota,
    ReachFlags,
    SwarmModel,
    check_range,
    option,
    parse_bytes,
)
from p2pinfer.running import cancel_at_end_of_input, run_task

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it
    from p2pinfer.announce import Announcer
    from p2pinfer.chat import ChatOptions
    from p2pinfer.core.ids import ModelId
    from p2pinfer.engine.store import Store
    from p2pinfer.join import PeerOptions, Serving
    from p2pinfer.node import ClientOptions
    from p2pinfer.supply import Choose
    from p2pinfer.swarm import LocalPeer

EXIT_CODES = """
Exit codes: 0 done, 1 failed, 2 unusable input, 3 nobody serves this model,
4 damaged parts or a certificate that does not hold, 130 interrupted.
Every option can also be set as P2PINFER_<NAME>. Directories: see P2PINFER_HOME in the README.
"""

app = App(
    name="p2pinfer",
    help=f"Pool ordinary machines into a swarm that runs one language model.\n{EXIT_CODES}",
    version=version("p2pinfer"),
    help_format="plaintext",
)
app.command("p2pinfer.cli_bench:app", name="bench", help="Measure; prints JSON.")
app.command(
    "p2pinfer.cli_serve:serve",
    name="serve",
    help=(
        "Serve OpenAI's interface and a web page that shows the swarm.\n\n"
        "The options of answers hold for whoever does not ask otherwise."
    ),
)
app.command("p2pinfer.cli_ledger:app", name="ledger", help="Show who worked for whom.")
app.command("p2pinfer.cli_verify:app", name="verify", help="Check an answer's certificate.")
app.command("p2pinfer.cli_model:app", name="model", help="Add, list, check and remove models.")
app.command("p2pinfer.cli_peers:network_key", name="network-key", help="Make a network's key.")
app.command("p2pinfer.cli_peers:peers", name="peers", help="Show who serves what, and how fast.")
app.command("p2pinfer.cli_status:status", name="status", help="Say what this machine does.")
app.command("p2pinfer.cli_status:ps", name="ps", help="List the sessions that are open here.")
app.command("p2pinfer.cli_peers:doctor", name="doctor", help="Say why this machine serves or not.")
app.command(
    "p2pinfer.cli_sim:app", name="sim", help="Simulate a network with the code of real peers."
)


@app.command
def chat(
    prompt: str | None = None,
    /,
    *,
    bootstrap: Bootstrap = (),
    model: SwarmModel = None,
    network: Network = "main",
    quota: Quota = None,
    wait: Annotated[float, option("wait", "Seconds to wait for a whole chain of peers.")] = 10.0,
    as_json: AsJson = False,
    reach: ReachFlags = REACH,
    answer: AnswerFlags = ANSWER,
    machine: MachineFlags = MACHINE,
) -> None:
    """Chat with a model through a swarm.

    Parameters
    ----------
    prompt: str
        One question; or pipe it in. Without it the chat is interactive.
    """
    from p2pinfer.node import ClientOptions
    from p2pinfer.supply import open_store
    from p2pinfer.terminal import question_of

    check_range("wait", wait, 0)
    how = answer.options()
    limits = machine.machine()
    question = question_of(prompt, as_json=as_json)
    store = open_store(parse_bytes("quota", quota))
    options = ClientOptions(
        _name_model(model, store) if model else None,
        bootstrap,
        reach.of(network),
        answer.keep_layers,
        limits,
        find_s_max=wait,
        audit_rate=answer.audit_rate,
        default_model=_default_model(store),
    )
    run_task(lambda: _talk(options, store, how, question, as_json=as_json))


@app.command
def demo(
    prompt: str | None = None,
    /,
    *,
    peers: Peers = 3,
    model: Model = "default",
    as_json: AsJson = False,
    answer: AnswerFlags = ANSWER,
    machine: MachineFlags = MACHINE,
) -> None:
    """Start a swarm of local peers, each a process of its own, chat with it, and end it.

    Parameters
    ----------
    prompt: str
        One question; or pipe it in. Without it the chat is interactive.
    """
    from p2pinfer.node import ClientOptions
    from p2pinfer.places import data_dir
    from p2pinfer.supply import open_store, open_whole
    from p2pinfer.swarm import local_swarm, share_layers
    from p2pinfer.terminal import Doing, question_of, say

    how = answer.options()
    limits = machine.machine()
    question = question_of(prompt, as_json=as_json)
    store = open_store()
    opened = open_whole(_name_model(model, store), store)
    ranges = share_layers(opened, peers, answer.keep_layers, limits)

    async def run() -> None:
        done = Doing(f"Starting {_count(peers, 'peer')} for {opened.info.name} …")

        def ready(peer: "LocalPeer") -> None:
            say(f"peer …{peer.peer[-6:]} serves layers {peer.layers} in process {peer.process.pid}")

        try:
            # The first peer has the whole model; the others fetch their layers, as strangers would.
            homes = data_dir() / "demo" / f"{peers}-peers"
            swarm = local_swarm(opened, ranges, machine=limits, homes=homes, on_ready=ready)
            async with swarm as running:
                done()
                ways_in = tuple(peer.addresses[0] for peer in running)
                options = ClientOptions(
                    opened.id,
                    ways_in,
                    "local",
                    answer.keep_layers,
                    limits,
                    audit_rate=answer.audit_rate,
                )
                await _talk(options, store, how, question, as_json=as_json)
        finally:
            done()

    run_task(run)


@app.command
def join(
    *,
    layers: Annotated[
        str | None,
        option("layers", "FIRST:END, to serve just that range; END is not in it. Else it chooses."),
    ] = None,
    memory: Annotated[
        str | None,
        option("memory", "For weights and sessions, as 2GiB; else half of what is free."),
    ] = None,
    model: SwarmModel = None,
    listen: Annotated[
        tuple[str, ...], option("listen", "Multiaddrs to listen on.", consume_multiple=True)
    ] = ("/ip4/0.0.0.0/tcp/0",),
    bootstrap: Bootstrap = (),
    network: Network = "main",
    quota: Quota = None,
    identity: Annotated[
        Path | None, option("identity", "The key's file; made when it is not there.")
    ] = None,
    only_idle: Annotated[
        bool,
        option("only-idle", "Rest while this machine is on battery, or busy with other work."),
    ] = False,
    as_json: AsJson = False,
    until_stdin_closes: Annotated[bool, Parameter(show=False, negative="")] = False,
    transport: Annotated[str, Parameter(show=False)] = "libp2p",
    reach: ReachFlags = REACH,
    machine: MachineFlags = MACHINE,
) -> None:
    """Lend this machine to a swarm: serve the layers of a model where it helps most.

    The first Ctrl-C lets sessions finish and hands the layers over, the second one stops at once.
    """
    from p2pinfer.announce import Announcer
    from p2pinfer.join import PeerOptions
    from p2pinfer.supply import open_store

    limits = machine.machine()
    fixed = None if layers is None else _parse_layers(layers)
    memory_bytes = parse_bytes("memory", memory)
    store = open_store(parse_bytes("quota", quota))
    options = PeerOptions(
        model=_name_model(model, store) if model else None,
        layers=fixed,
        listen=listen,
        bootstrap=bootstrap,
        network=reach.of(network),
        identity=identity,
        machine=limits,
        memory_bytes=memory_bytes,
        transport=transport,
        only_idle=only_idle,
    )
    announcer = Announcer(_how_to_reach(network, reach), as_json=as_json, fixed=fixed is not None)
    _lend(options, store, announcer, until_stdin_closes=until_stdin_closes)


def _how_to_reach(network: str, reach: ReachFlags) -> str:
    """Return the options that others need to reach the same swarm."""
    found = "" if network == "main" else f" --network {network}"
    return found + (f" --network-key {reach.network_key}" if reach.network_key else "")


def _lend(
    options: "PeerOptions", store: "Store", announcer: "Announcer", *, until_stdin_closes: bool
) -> None:
    """Run a peer until it has left."""
    import trio

    from p2pinfer.join import Hooks, serve_peer
    from p2pinfer.terminal import Doing, say

    leaving = trio.Event()

    async def run() -> None:
        done = Doing("Joining the swarm …")

        def ready(serving: "Serving") -> None:
            done()
            announcer.tell(serving)

        hooks = Hooks(ready, done.tell, say, leaving, _default_model(store))
        try:
            async with trio.open_nursery() as nursery:
                if until_stdin_closes:
                    nursery.start_soon(cancel_at_end_of_input, nursery.cancel_scope)
                await serve_peer(options, store, hooks)
                nursery.cancel_scope.cancel()
        finally:
            done()

    run_task(run, interrupted=errors.EXIT_DONE, leave=leaving.set)


async def _talk(
    options: "ClientOptions",
    store: "Store",
    how: "ChatOptions",
    question: str | None,
    *,
    as_json: bool,
) -> None:
    """Answer one question, or converse on a terminal."""
    from p2pinfer.chat import open_conversation
    from p2pinfer.node import open_client
    from p2pinfer.places import state_dir
    from p2pinfer.terminal import Doing, answer_once, say

    done = Doing("Joining the swarm …")
    try:
        async with open_client(options, store, done.tell) as client:
            done()
            async with open_conversation(client, how, say) as conversation:
                if question is not None:
                    await answer_once(conversation, question, as_json=as_json)
                else:
                    from p2pinfer.conversing import converse

                    await converse(conversation, client, state_dir() / "chat_history")
    finally:
        done()


def _name_model(name: str, store: "Store") -> "ModelId":
    """Return the id of what ``--model`` names, showing how a new file is taken in."""
    from p2pinfer.cli_model import adding_progress
    from p2pinfer.supply import name_model

    with adding_progress() as on_progress:
        return name_model(name, store, on_progress)


def _default_model(store: "Store") -> "Choose":
    """Return what finds the default model's id, once it is known that it is needed."""
    import trio

    async def find() -> "ModelId":
        return await trio.to_thread.run_sync(_name_model, "default", store)

    return find


def _parse_layers(text: str) -> tuple[int, int]:
    first, colon, end = text.partition(":")
    if not (colon and first.isdecimal() and end.isdecimal()):
        raise UserError(f"--layers {text} is not a range such as 10:20")
    return int(first), int(end)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def main() -> None:
    """Run the command line, and turn what goes wrong into a sentence and an exit code."""
    logging.basicConfig(level=logging.WARNING, format="p2pinfer: %(message)s")
    try:
        with errors.lone_errors():
            app(sys.argv[1:], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _fail(_usage(error), errors.EXIT_USAGE)
    except P2pinferError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        sys.exit(errors.EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output is gone; Python would try once more to write the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(errors.EXIT_FAILED)
    except OSError as error:  # a full disk, a file that nobody may read
        place = f"{error.filename}: " if error.filename else ""
        _fail(f"{place}{error.strerror or error}", errors.EXIT_FAILED)


def _usage(error: CycloptsError) -> str:
    """Say what is wrong with a command line, and where to read what can be typed."""
    if isinstance(error, UnusedCliTokensError):
        text = f"{' '.join(error.unused_tokens or ())!r} is too much: put a prompt into quotes."
    else:
        text = str(error)
    command = " ".join(["p2pinfer", *(error.command_chain or ())])
    return f"{text} See: {command} --help"


def _fail(text: str, code: int) -> None:
    print(f"p2pinfer: {text}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
