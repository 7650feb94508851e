"""``p2pinfer bench rpc``."""

from functools import partial
from pathlib import Path
from typing import Annotated

from p2pinfer.cli.bench_report import print_report
from p2pinfer.cli.options import AsJson, Model, Peers, option
from p2pinfer.cli.running import run_task
from p2pinfer.cli.sizes import check_range


def rpc(
    *,
    rpc_server: Annotated[
        Path | None,
        option("rpc-server", "llama.cpp's ggml-rpc-server, in a folder with its libraries."),
    ] = None,
    peers: Peers = 3,
    model: Model = "default",
    tokens: Annotated[int, option("tokens", "Tokens per answer.")] = 128,
    runs: Annotated[int, option("runs", "Number of interleaved runs.")] = 5,
    prompt_tokens: Annotated[
        int, option("prompt-tokens", "Length of the prompt, in tokens.")
    ] = 128,
    as_json: AsJson = False,
) -> None:
    """Compare a local swarm with llama.cpp alone, and over servers of its own."""
    from p2pinfer.bench.decode import PROMPT_TOKENS_MAX
    from p2pinfer.bench.rpc import find_server, rpc_bench
    from p2pinfer.node.model_supply import model_path

    check_range("tokens", tokens, 2)  # the first comes with the prompt
    check_range("runs", runs, 1)
    check_range("prompt-tokens", prompt_tokens, 2, PROMPT_TOKENS_MAX)
    program = find_server(rpc_server)
    measure = partial(
        rpc_bench,
        model_path(model),
        peers,
        program,
        tokens=tokens,
        runs=runs,
        prompt=prompt_tokens,
    )
    run_task(lambda: print_report(measure, as_json=as_json))
