"""``p2pinfer bench``: benchmarks, printed as JSON."""

from functools import partial
from typing import Annotated, Literal

from cyclopts import App

from p2pinfer.cli.bench_cheats import cheats, proofs
from p2pinfer.cli.bench_learn import learn
from p2pinfer.cli.bench_membership import membership
from p2pinfer.cli.bench_report import print_report
from p2pinfer.cli.bench_rpc import rpc
from p2pinfer.cli.bench_storage import storage
from p2pinfer.cli.bench_sums import sums
from p2pinfer.cli.machine_options import SESSIONS_MAX
from p2pinfer.cli.options import OPTIONS, AsJson, Model, Peers, option
from p2pinfer.cli.running import run_task
from p2pinfer.cli.sizes import check_range
from p2pinfer.core.errors import UserError

DISCOVERY_PEERS_MAX = 100
"""Processes of 90 MB each."""

SWARM_PEERS_MAX = 1_000_000
"""In the in-memory swarms whose decisions are timed: 2 GB of advertisements."""

app = App(
    name="bench",
    help="Run a benchmark and print its result as JSON.",
    help_format="plaintext",
    group_parameters=OPTIONS,
)
for _command in (cheats, learn, membership, proofs, rpc, storage, sums):
    app.command(_command)


@app.command
def decode(
    *,
    peers: Peers = 3,
    model: Model = "default",
    sessions: Annotated[int, option("sessions", "Also decode in this many sessions at once.")] = 1,
    tokens: Annotated[int, option("tokens", "Tokens per answer.")] = 128,
    runs: Annotated[int, option("runs", "Number of interleaved runs.")] = 5,
    prompts: Annotated[
        tuple[int, ...],
        option("prompts", "Lengths of the prompts, in tokens.", consume_multiple=True),
    ] = (128, 1024, 3800),
    as_json: AsJson = False,
) -> None:
    """Compare a local swarm with llama.cpp alone: same file, same tokens, same run."""
    from p2pinfer.bench.decode import PROMPT_TOKENS_MAX, decode_bench
    from p2pinfer.node.model_supply import model_path

    check_range("sessions", sessions, 1, SESSIONS_MAX)
    check_range("tokens", tokens, 2)  # the first comes with the prompt
    check_range("runs", runs, 1)
    check_range("prompts", len(prompts), 1)
    for length in prompts:
        check_range("prompts", length, 2, PROMPT_TOKENS_MAX)
    measure = partial(
        decode_bench,
        model_path(model),
        peers,
        tokens=tokens,
        runs=runs,
        sessions=sessions,
        prompts=prompts,
    )
    run_task(lambda: print_report(measure, as_json=as_json))


@app.command
def transport(
    *,
    rounds: Annotated[int, option("rounds", "Number of interleaved rounds.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Compare our muxer with libp2p's own: two processes on loopback."""
    from p2pinfer.bench.transport import transport_bench

    check_range("rounds", rounds, 1)
    run_task(lambda: print_report(partial(transport_bench, rounds), as_json=as_json))


@app.command
def relay(
    *,
    mbytes: Annotated[int, option("mbytes", "Bulk sent per round, in MiB.")] = 64,
    rounds: Annotated[int, option("rounds", "Number of interleaved rounds.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Measure what carrying for others costs a relay, in CPU and memory."""
    from p2pinfer.bench.relay import relay_bench

    check_range("mbytes", mbytes, 1)
    check_range("rounds", rounds, 1)
    run_task(lambda: print_report(partial(relay_bench, mbytes, rounds), as_json=as_json))


@app.command
def discovery(
    *,
    peers: Annotated[int, option("peers", "Number of peer processes, without engines.")] = 30,
    seconds: Annotated[
        float, option("seconds", "Seconds for which the peers are left alone.")
    ] = 120.0,
    cut: Annotated[
        float, option("cut", "Seconds for which half of them are cut off; 0: never.")
    ] = 60.0,
    settle: Annotated[
        float, option("settle", "Seconds to wait before counting, once all peers know each other.")
    ] = 15.0,
    as_json: AsJson = False,
) -> None:
    """Measure what peers spend on knowing each other, and how long they take."""
    from p2pinfer.bench.discovery import discovery_bench

    check_range("peers", peers, 2, DISCOVERY_PEERS_MAX)
    check_range("seconds", seconds, 1)
    check_range("cut", cut, 0)
    check_range("settle", settle, 0)
    measure = partial(discovery_bench, peers, seconds, cut, settle)
    run_task(lambda: print_report(measure, as_json=as_json))


@app.command
def swarm(*, peers: Peers = 8, model: Model = "default", as_json: AsJson = False) -> None:
    """Time a swarm from its first start to its first token; peers choose their own layers."""
    from p2pinfer.bench.swarm import swarm_bench
    from p2pinfer.node.local_swarm import PEERS_MAX
    from p2pinfer.node.model_supply import model_path

    check_range("peers", peers, 1, PEERS_MAX)
    run_task(lambda: print_report(partial(swarm_bench, model_path(model), peers), as_json=as_json))


@app.command
def fetch(
    *,
    rounds: Annotated[int, option("rounds", "Number of interleaved rounds.")] = 5,
    megabytes: Annotated[
        int, option("megabytes", "Size of the synthetic model that is fetched in each round.")
    ] = 200,
    gigabytes: Annotated[
        tuple[float, ...],
        option(
            "gigabytes", "Fetch synthetic models of these sizes instead.", consume_multiple=True
        ),
    ] = (),
    as_json: AsJson = False,
) -> None:
    """Compare fetching parts, from one holder and from three, with a single plain stream."""
    from p2pinfer.bench.fetch import LAYERS, fetch_bench
    from p2pinfer.bench.fetch_size import size_bench

    check_range("rounds", rounds, 1)
    check_range("megabytes", megabytes, LAYERS, 100_000)
    for size in gigabytes:
        check_range("gigabytes", size, 0.01, 100)
    layer_bytes = megabytes * 1_000_000 // LAYERS
    measure = (
        partial(size_bench, gigabytes) if gigabytes else partial(fetch_bench, rounds, layer_bytes)
    )
    run_task(lambda: print_report(measure, as_json=as_json))


@app.command
def recovery(
    *,
    model: Model = "default",
    trials: Annotated[int, option("trials", "Number of trials for each role and phase.")] = 5,
    tokens: Annotated[int, option("tokens", "Tokens per answer.")] = 48,
    seed: Annotated[int, option("seed", "Random seed for when peers are killed.")] = 1,
    roles: Annotated[
        tuple[Literal["first", "middle", "last"], ...],
        option("roles", "Stages to kill.", consume_multiple=True),
    ] = ("first", "middle", "last"),
    phases: Annotated[
        tuple[Literal["prompt", "answer"], ...],
        option(
            "phases",
            "Phases in which to kill them: while the prompt or the answer is computed.",
            consume_multiple=True,
        ),
    ] = ("prompt", "answer"),
    as_json: AsJson = False,
) -> None:
    """Kill peers in mid-answer: does the answer go on, and how long does it stall?"""
    from p2pinfer.bench.recovery import recovery_bench
    from p2pinfer.node.model_supply import model_path

    check_range("trials", trials, 1)
    check_range("tokens", tokens, 4)
    measure = partial(
        recovery_bench,
        model_path(model),
        trials=trials,
        tokens=tokens,
        seed=seed,
        roles=roles,
        phases=phases,
    )
    run_task(lambda: print_report(measure, as_json=as_json))


@app.command
def churn(
    *,
    model: Model = "default",
    minutes: Annotated[float, option("minutes", "Minutes for which peers come and go.")] = 20.0,
    peers: Peers = 8,
    requesters: Annotated[int, option("requesters", "Number of requesters that ask at once.")] = 4,
    seed: Annotated[
        int, option("seed", "Random seed for which peers are disturbed, how and when.")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Kill, freeze and replace peers while requesters ask; report what is lost or left behind."""
    from p2pinfer.bench.churn import HOLDERS, churn_bench
    from p2pinfer.cli.terminal import say
    from p2pinfer.node.local_swarm import PEERS_MAX
    from p2pinfer.node.model_supply import model_path

    check_range("minutes", minutes, 0.1)
    check_range("peers", peers, 2 * HOLDERS, PEERS_MAX)
    check_range("requesters", requesters, 1, SESSIONS_MAX // 2)
    measure = partial(
        churn_bench,
        model_path(model),
        minutes=minutes,
        peers=peers - peers % HOLDERS,
        requesters=requesters,
        seed=seed,
        tell=say,
    )
    run_task(lambda: print_report(measure, as_json=as_json))


@app.command
def wan(
    *,
    peers: Peers = 3,
    model: Model = "default",
    rtt: Annotated[float, option("rtt", "Round trip between any two hosts, in milliseconds.")] = 40,
    mbit: Annotated[float, option("mbit", "Rate of each link, in megabits a second.")] = 100,
    tokens: Annotated[int, option("tokens", "Tokens per answer.")] = 96,
    runs: Annotated[int, option("runs", "Runs of each text and sampler.")] = 2,
    texts: Annotated[
        tuple[Literal["chat", "code", "edit"], ...],
        option("texts", "What answers go on from.", consume_multiple=True),
    ] = ("chat", "code", "edit"),
    samplers: Annotated[
        tuple[Literal["greedy", "t0.8", "t1.5-penalty"], ...],
        option("samplers", "Ways to sample.", consume_multiple=True),
    ] = ("greedy",),
    draft_model: Annotated[
        str | None, option("draft-model", "Also draft by this model, which has the same tokens.")
    ] = None,
    draft_requantised: Annotated[
        Literal["Q2_K", "Q3_K_M", "Q4_0"] | None,
        option(
            "draft-requantised",
            "Also draft by the model itself, quantised again: it says most tokens alike.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare answers with and without tokens sent ahead, over peers on distant hosts."""
    from p2pinfer.bench.slow_links import SlowLink
    from p2pinfer.bench.wan import wan_bench
    from p2pinfer.node.model_supply import model_path

    check_range("rtt", rtt, 0, 1000)
    check_range("mbit", mbit, 0.1, 10_000)
    check_range("tokens", tokens, 2)
    check_range("runs", runs, 1)
    if draft_model and draft_requantised:
        raise UserError("give one of --draft-model and --draft-requantised: one model drafts")
    link = SlowLink(rtt / 1000, mbit * 1e6 / 8)
    measure = partial(
        wan_bench,
        model_path(model),
        peers,
        link,
        tokens=tokens,
        runs=runs,
        texts=texts,
        samplers=samplers,
        small=model_path(draft_model) if draft_model else None,
        requantised=draft_requantised,
    )
    run_task(lambda: print_report(measure, as_json=as_json))


@app.command
def evidence(
    *,
    peers: Peers = 3,
    model: Model = "default",
    tokens: Annotated[int, option("tokens", "Tokens per answer.")] = 232,
    runs: Annotated[int, option("runs", "Number of pairs of answers.")] = 12,
    as_json: AsJson = False,
) -> None:
    """Compare decoding with and without receipts: same peers, alternating block by block."""
    from p2pinfer.bench.evidence import BLOCK_TOKENS, evidence_bench
    from p2pinfer.node.model_supply import model_path

    check_range("tokens", tokens, 1 + BLOCK_TOKENS)
    check_range("runs", runs, 1)
    measure = partial(evidence_bench, model_path(model), peers, tokens=tokens, runs=runs)
    run_task(lambda: print_report(measure, as_json=as_json))


@app.command
def kv_root(
    *,
    peers: Peers = 3,
    model: Model = "default",
    tokens: Annotated[int, option("tokens", "Tokens per answer.")] = 232,
    runs: Annotated[int, option("runs", "Number of pairs of answers.")] = 7,
    as_json: AsJson = False,
) -> None:
    """Compare decoding beside stages that sign for K and V, and without: block by block."""
    from p2pinfer.bench.evidence import BLOCK_TOKENS
    from p2pinfer.bench.kv_root import RUNS_MAX, kv_root_bench
    from p2pinfer.node.model_supply import model_path

    check_range("tokens", tokens, 1 + BLOCK_TOKENS)
    check_range("runs", runs, 1, RUNS_MAX)
    measure = partial(kv_root_bench, model_path(model), peers, tokens=tokens, runs=runs)
    run_task(lambda: print_report(measure, as_json=as_json))


@app.command
def constraints(
    *,
    peers: Peers = 3,
    model: Model = "default",
    tokens: Annotated[int, option("tokens", "Tokens per answer.")] = 240,
    runs: Annotated[int, option("runs", "Number of pairs of answers.")] = 6,
    as_json: AsJson = False,
) -> None:
    """Compare decoding with and without a JSON schema: same peers, alternating block by block."""
    from p2pinfer.bench.constraints import BLOCK_TOKENS, constraints_bench
    from p2pinfer.node.model_supply import model_path

    check_range("tokens", tokens, 1 + BLOCK_TOKENS)
    check_range("runs", runs, 1)
    measure = partial(constraints_bench, model_path(model), peers, tokens=tokens, runs=runs)
    run_task(lambda: print_report(measure, as_json=as_json))


@app.command
def honest(
    *,
    model: Model = "default",
    checkpoints: Annotated[
        int, option("checkpoints", "Minimum number of checkpoints to audit.")
    ] = 1000,
    seed: Annotated[int, option("seed", "Random seed for prompts, routes and keys.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Audit honest stages with other batches, chunks and classes; count false alarms."""
    from p2pinfer.bench.honest import honest_bench
    from p2pinfer.cli.terminal import say
    from p2pinfer.node.model_supply import model_path

    check_range("checkpoints", checkpoints, 1)
    path = model_path(model)
    measure = partial(honest_bench, path, checkpoints=checkpoints, seed=seed, tell=say)
    run_task(lambda: print_report(measure, as_json=as_json))


@app.command
def agent(
    *,
    model: Model = "default",
    turns: Annotated[int, option("turns", "Turns of the recording to play.")] = 20,
    context: Annotated[int, option("context", "Positions per session, at most.")] = 16_384,
    as_json: AsJson = False,
) -> None:
    """Play an agent's recorded conversation: what is read again, and how long others wait."""
    from p2pinfer.bench.agent import TURNS_MAX, agent_bench
    from p2pinfer.node.model_supply import model_path

    check_range("turns", turns, 2, TURNS_MAX)
    check_range("context", context, 64)
    measure = partial(agent_bench, model_path(model), turns=turns, context=context)
    run_task(lambda: print_report(measure, as_json=as_json))


@app.command
def answers(
    *,
    model: Model = "default",
    ways: Annotated[
        tuple[str, ...],
        option("ways", "Ways to compare, by name. If omitted: all.", consume_multiple=True),
    ] = (),
    seeds: Annotated[int, option("seeds", "Answers to each question (one if greedy).")] = 5,
    questions: Annotated[
        int, option("questions", "Number of questions to ask, of the twenty.")
    ] = 20,
    tokens: Annotated[int, option("tokens", "Maximum tokens per answer.")] = 400,
    as_json: AsJson = False,
) -> None:
    """Compare ways to sample by how many plain questions they get right; llama.cpp alone."""
    from p2pinfer.bench.answers import QUESTIONS, answers_bench, find_ways
    from p2pinfer.node.model_supply import model_path

    check_range("seeds", seeds, 1)
    check_range("questions", questions, 1, len(QUESTIONS))
    check_range("tokens", tokens, 1)
    measure = partial(
        answers_bench,
        model_path(model),
        find_ways(ways),
        seeds=seeds,
        tokens=tokens,
        questions=questions,
    )
    run_task(lambda: print_report(measure, as_json=as_json))


@app.command
def scheduler(
    *,
    rounds: Annotated[int, option("rounds", "Number of decisions of each kind and size.")] = 9,
    placed: Annotated[
        tuple[int, ...],
        option(
            "placed",
            "Sizes, in peers, of the swarms in which to choose layers.",
            consume_multiple=True,
        ),
    ] = (1_000, 10_000, 100_000),
    routed: Annotated[
        tuple[int, ...],
        option(
            "routed",
            "Sizes, in peers, of the swarms in which to find routes.",
            consume_multiple=True,
        ),
    ] = (100, 1_000, 10_000),
    as_json: AsJson = False,
) -> None:
    """Time decisions in large swarms: which layers to serve, and which route to take."""
    from p2pinfer.bench.scheduler import PEERS_MIN, scheduler_bench

    check_range("rounds", rounds, 1)
    for name, counts in {"placed": placed, "routed": routed}.items():
        for count in counts:
            check_range(name, count, PEERS_MIN, SWARM_PEERS_MAX)
    measure = partial(scheduler_bench, rounds, placed, routed)
    run_task(lambda: print_report(measure, as_json=as_json))
