"""How a local swarm compares with llama.cpp's own way of sharing a model: its RPC servers.

Three things take turns, so that a slow moment of the machine hits all of them: llama.cpp in one
process, llama.cpp with as many of its servers on loopback as the swarm has peers, and the swarm.
Greedy, one thread per process, the same file; prompts are read with llama.cpp's own 512 rows per
decode where it runs alone or over servers. Its servers neither encrypt, nor check, nor replace what
is lost; their processors do not rearrange weights either, so that their tokens may differ.
"""

import os
import socket
import subprocess
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any, Final

import trio

from p2pinfer.bench.decode import (
    DecodeRun,
    median,
    one_session,
    open_alone,
    open_peers,
    prompt_text,
    settings_used,
)
from p2pinfer.core.errors import P2pinferError, UserError
from p2pinfer.core.limits import CONTEXT_MIN
from p2pinfer.engine.llama.libraries import FOLDER_VARIABLE, check_version, library
from p2pinfer.node.local_swarm import share_layers
from p2pinfer.node.model_supply import name_model, open_store, open_whole
from p2pinfer.node.requester import Machine

HOW_TO_BUILD: Final = (
    "compile the llama.cpp that llama-cpp-python's source package has in vendor/llama.cpp, with"
    " cmake -DGGML_RPC=ON -DBUILD_SHARED_LIBS=ON and the targets ggml-rpc-server and llama, then"
    " name the program with --rpc-server"
)

READY_S_MAX = 30.0
"""For a server to listen: it loads nothing before it is asked."""

LOOK_S = 0.05
"""How often it is tried: a server says nothing that could be waited for."""


def find_server(program: Path | None) -> Path:
    """Return llama.cpp's server, whose folder has the libraries of the same build.

    Raises:
        UserError: it is not there, or another llama.cpp's; the sentence says how to have it.
    """
    if program is None:
        raise UserError(
            f"this compares with llama.cpp's own server, which is not here: {HOW_TO_BUILD}"
        )
    found = program.expanduser().resolve()
    if not (found.is_file() and os.access(found, os.X_OK)):
        raise UserError(f"{program} is no program: {HOW_TO_BUILD}")
    for name in ("ggml-rpc", "llama"):
        if library(name, found.parent) is None:
            raise UserError(f"lib{name} is not beside {program}: {HOW_TO_BUILD}")
    check_version(found.parent)
    return found


async def rpc_bench(
    model: Path, peers: int, program: Path, *, tokens: int, runs: int, prompt: int
) -> dict[str, Any]:
    """Measure and return what ``p2pinfer bench rpc`` prints; ratios are medians over the runs.

    Args:
        model: a GGUF file.
        peers: how many share its layers, and how many servers do.
        program: llama.cpp's server, from ``find_server``.
        tokens: tokens in each answer.
        runs: how many runs count.
        prompt: the prompt's length in tokens.

    Raises:
        P2pinferError: the swarm's tokens differ from those of llama.cpp alone, or a server failed.
    """
    machine = Machine(sessions=1, context=max(CONTEXT_MIN, prompt + tokens))
    async with AsyncExitStack() as stack:
        store = open_store()
        opened = open_whole(name_model(str(model), store, lambda *_: None), store)
        ranges = share_layers(opened, peers, 1, machine)
        swarm = await stack.enter_async_context(open_peers(opened, ranges, machine, "libp2p"))
        used = [await settings_used(opened, each) for each in ranges]
        alone = await stack.enter_async_context(
            open_alone(model, machine.context, all(r for r, _ in used), all(f for _, f in used))
        )
        servers = await stack.enter_async_context(_servers(program, peers))
        rpc = await stack.enter_async_context(
            open_alone(
                model,
                machine.context,
                servers=servers,
                more_environment={FOLDER_VARIABLE: str(program.parent)},
            )
        )
        client, route = swarm
        text = await prompt_text(client.ends, prompt)
        due = (await alone(text, tokens, True)).tokens
        found: dict[str, list[DecodeRun]] = {"alone": [], "rpc": [], "swarm": []}
        for number in range(-1, runs):  # the first one warms up, and is not counted
            turn = {
                "alone": await alone(text, tokens, False),
                "rpc": await rpc(text, tokens, False),
                "swarm": await one_session(client, route, text, tokens),
            }
            if turn["swarm"].tokens != due:
                raise P2pinferError("the swarm's tokens differ from llama.cpp's")
            if number >= 0:
                for name, run in turn.items():
                    found[name].append(run)
    return {"peers": peers, "prompt_tokens": prompt, "tokens": tokens, **compare(found, due)}


def compare(found: Mapping[str, Sequence[DecodeRun]], due: Sequence[int]) -> dict[str, Any]:
    """Return the ratios of runs that took turns.

    Args:
        found: the runs of llama.cpp ``alone``, over its servers (``rpc``), and of the ``swarm``.
        due: the tokens of llama.cpp alone with the swarm's rows per decode.
    """
    report: dict[str, Any] = {"runs": len(found["alone"])}
    for name, runs in found.items():
        report[name] = {
            "tokens_per_second": median([run.tokens_per_second for run in runs]),
            "time_to_first_token_ms": median([1000 * run.prefill_s for run in runs]),
            "same_tokens": all(run.tokens == list(due) for run in runs),
        }
    for name, other in (("rpc", "alone"), ("swarm", "alone"), ("swarm", "rpc")):
        pairs = list(zip(found[name], found[other], strict=True))
        decode = [run.tokens_per_second / than.tokens_per_second for run, than in pairs]
        report[f"{name}_to_{other}"] = {
            "decode_ratio": median(decode),
            "decode_ratios": [round(ratio, 3) for ratio in decode],
            "prefill_ratio": median([than.prefill_s / run.prefill_s for run, than in pairs]),
        }
    return report


@asynccontextmanager
async def _servers(program: Path, count: int) -> AsyncGenerator[list[str], None]:
    """Run llama.cpp's servers on loopback, one thread each; yield their addresses."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(_server(program)) for _ in range(count)]


@asynccontextmanager
async def _server(program: Path) -> AsyncGenerator[str, None]:
    port = _free_port()
    command = [str(program), "--host", "127.0.0.1", "--port", str(port), "--threads", "1"]
    process = await trio.lowlevel.open_process(
        [*command, "--device", "CPU"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "LD_LIBRARY_PATH": str(program.parent)},
    )
    try:
        await _wait_listening(process, port)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def _wait_listening(process: trio.Process, port: int) -> None:
    """Wait until a server listens; raises P2pinferError where it does not."""
    with trio.move_on_after(READY_S_MAX):
        while process.poll() is None:
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                await trio.sleep(LOOK_S)
            else:
                await stream.aclose()
                return
    raise P2pinferError(f"llama.cpp's server does not listen: {HOW_TO_BUILD}")


def _free_port() -> int:
    """Return a port that was free just now: the servers take no 0."""
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
