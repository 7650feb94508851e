"""``p2pinfer sim``: networks of virtual peers, in virtual time."""

import atexit
import gc
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App

from p2pinfer.cli.options import OPTIONS, AsJson, Model, option
from p2pinfer.cli.sizes import check_range
from p2pinfer.core.errors import P2pinferError, UserError

if TYPE_CHECKING:
    from sim.scenario import Scenario

app = App(
    name="sim",
    help="Simulate a network, with the code that real peers run.",
    help_format="plaintext",
    group_parameters=OPTIONS,
)

EXPLAINED = """# A scenario is a TOML file. Tables and keys that have a default may be omitted.
# A value that varies is a number, [low, high], or { median = …, sigma = … }.
"""

QUESTIONS_MAX = 100
"""For each requester of ``validate``: more would take minutes, and exhaust the text that questions
are cut from."""

YOUNG_MAX = 1_000_000
"""New objects before Python looks for cycles among them: most objects of a run live on. With a
tenth of that, looking took 5 % of the time of a thousand peers."""


@app.default
def run(
    scenario: str = "home",
    /,
    *,
    seed: Annotated[int | None, option("seed", "Random seed, instead of the scenario's.")] = None,
    duration: Annotated[
        float | None,
        option("duration", "Virtual seconds with questions, instead of the scenario's."),
    ] = None,
    peers: Annotated[
        int | None,
        option("peers", "Number of peers, instead of the scenario's; each kind keeps its share."),
    ] = None,
    beside_public: Annotated[
        bool,
        option(
            "beside-public",
            "Run it twice, the second time as if every peer could be dialled, and compare.",
            negative="",
        ),
    ] = False,
    beside_plain: Annotated[
        bool,
        option(
            "beside-plain",
            "Run it twice, the second time as if nobody sent tokens ahead, and compare.",
            negative="",
        ),
    ] = False,
    out: Annotated[Path | None, option("out", "Folder for the report's files.")] = None,
    explain: Annotated[
        bool,
        option(
            "explain",
            "Explain what a scenario file may hold, and list the shipped ones.",
            negative="",
        ),
    ] = False,
    hunt: Annotated[int, option("hunt", "Run N random scenarios; shrink the first failure.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Run a scenario and its checks; exit code 1 if a check fails.

    Parameters
    ----------
    scenario: str
        TOML file, or the name of a shipped scenario (see --explain).
    """
    from sim.scenario import load_scenario

    if explain:
        _explain()
        return
    if hunt:
        check_range("hunt", hunt, 1)
        _tune_memory()
        _hunt(hunt, seed or 0, out, as_json=as_json)
        return
    loaded = load_scenario(scenario)
    again = ["p2pinfer", "sim", scenario]
    changed = _changed(loaded, seed, duration, peers, again)
    _tune_memory()
    _run(
        changed,
        out,
        again,
        as_json=as_json,
        beside_public=beside_public,
        beside_plain=beside_plain,
    )


@app.command
def scale(
    *,
    peers: Annotated[int, option("peers", "Number of peers.")] = 10_000,
    layers: Annotated[int, option("layers", "Number of layers in the model.")] = 80,
    minutes: Annotated[float, option("minutes", "Virtual minutes to simulate.")] = 8.0,
    seed: Annotated[int, option("seed", "Random seed.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Simulate up to a million peers choosing layers, without messages; a tenth vanish halfway."""
    from p2pinfer.core.checks import LAYERS_MAX
    from sim.scale import LAYERS_MIN, MINUTES_MIN, PEERS_MAX, PEERS_MIN
    from sim.scale import scale as run_scale

    check_range("peers", peers, PEERS_MIN, PEERS_MAX)
    check_range("layers", layers, LAYERS_MIN, LAYERS_MAX)
    check_range("minutes", minutes, MINUTES_MIN)
    with _progress() as on_share:
        report = run_scale(peers, layers, minutes, seed, on_share)
    print(json.dumps(report, indent=None if as_json else 2))


@app.command
def storage(
    *,
    peers: Annotated[int, option("peers", "Number of peers that lend space.")] = 200,
    days: Annotated[float, option("days", "Virtual days to simulate.")] = 30.0,
    up: Annotated[float, option("up", "Share of the time that each peer is up.")] = 0.7,
    seed: Annotated[int, option("seed", "Random seed.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Simulate a model that peers keep while they come, go, and leave for good."""
    from sim.storage import PEERS_MAX, PEERS_MIN
    from sim.storage import storage as run_storage

    check_range("peers", peers, PEERS_MIN, PEERS_MAX)
    check_range("days", days, 0.1)
    check_range("up", up, 0.1, 0.99)
    with _progress() as on_share:
        report = run_storage(peers, days, up, seed, on_share)
    print(json.dumps(report, indent=None if as_json else 2))


@app.command
def observer(
    *,
    users: Annotated[int, option("users", "Users that ask through the same relay.")] = 150,
    pace: Annotated[int, option("pace", "Milliseconds between rows where they are paced.")] = 20,
    seed: Annotated[int, option("seed", "Random seed.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Simulate who watches a line behind a relay, and tries to tell whose sessions they are.

    Says how many of a hundred pairs of sessions it judges rightly, of which half are of one user;
    exit code 1 if it links paced ones by more than five beyond a guess.
    """
    from sim.observer import USERS_MAX, USERS_MIN
    from sim.observer import observer as run_observer
    from transports.libp2p.padding import PACE_MS_MAX, PACE_MS_MIN

    check_range("users", users, USERS_MIN, USERS_MAX)
    check_range("pace", pace, PACE_MS_MIN, PACE_MS_MAX)
    with _progress() as on_share:
        report = run_observer(users, pace, seed, on_share)
    print(json.dumps(report, indent=None if as_json else 2))
    if not report["holds"]:
        raise P2pinferError("an observer of one hop links paced sessions")


@app.command
def validate(
    *,
    model: Model = "default",
    rounds: Annotated[int, option("rounds", "Number of real trials; the median counts.")] = 3,
    questions: Annotated[
        int, option("questions", "Questions from each of the two requesters.")
    ] = 6,
    quiet: Annotated[
        float, option("quiet", "Seconds without questions, in which gossip is counted.")
    ] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Compare a small real swarm with its simulation: 5 peers, 1 killed, 2 requesters."""
    from p2pinfer.bench.validate import Real, TrialPlan, play_real
    from p2pinfer.bench.validate import validate as simulate_it
    from p2pinfer.cli.running import run_task
    from p2pinfer.cli.terminal import Spinner, say
    from p2pinfer.node.model_supply import model_path
    from sim.trial import QUESTIONS_MIN

    check_range("rounds", rounds, 1)
    check_range("questions", questions, QUESTIONS_MIN, QUESTIONS_MAX)
    check_range("quiet", quiet, 0.1)
    plan = TrialPlan(rounds, questions, quiet)
    path = model_path(model)
    found: list[Real] = []

    async def play() -> None:
        found.append(await play_real(path, plan, say))

    done = Spinner("Running a real swarm, then simulating it …")
    try:
        run_task(play)
        report = simulate_it(
            found[0]
        )  # outside run_task: it runs its own event loop, in virtual time
    finally:
        done()
    print(json.dumps(report, indent=None if as_json else 2))


def _explain() -> None:
    """Print what a scenario may hold, and the shipped ones."""
    from sim.scenario import Scenario, load_scenario, shipped
    from sim.toml_schema import explain

    print(EXPLAINED)
    print("\n".join(explain(Scenario)))
    print("\n# Shipped:")
    for name in shipped():
        print(f"#   {name}: {load_scenario(name).about}")


def _tune_memory() -> None:
    """Start this command again with its memory in huge pages, and collect garbage rarely.

    A simulation touches all memory of all peers all the time; with 4 KiB pages it spends a fifth of
    its time on page lookups. The allocator is chosen before Python starts, so not in this process.
    """
    from p2pinfer.engine.llama.process import HUGE_PAGES

    wanted = {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": HUGE_PAGES}
    words = sys.argv[1:]
    is_whole_process = sys.orig_argv[-len(words) :] == words
    if not is_whole_process:
        return
    is_free = not any(name in os.environ for name in wanted)
    if platform.libc_ver()[0] == "glibc" and is_free:
        with suppress(OSError):  # then it only runs slower
            again = [sys.executable, *sys.orig_argv[1:]]
            os.execve(sys.executable, again, os.environ | wanted)  # noqa: S606 -- as it was started
    gc.set_threshold(YOUNG_MAX, *gc.get_threshold()[1:])
    atexit.register(gc.freeze)  # no last collection: the process ends anyway


def _changed(
    scenario: "Scenario",
    seed: int | None,
    duration_s: float | None,
    peers: int | None,
    again: list[str],
) -> "Scenario":
    """Return the scenario as the command line changes it; add its options to ``again``."""
    from attrs import evolve

    from sim.scenario import shorten

    if duration_s is not None:
        check_range("duration", duration_s, 1, scenario.duration_s)
        again += ["--duration", f"{duration_s:g}"]
    if peers is not None:
        check_range("peers", peers, 1, scenario.peer_count)
        again += ["--peers", str(peers)]
    if duration_s is not None or peers is not None:
        whole_s, all_peers = scenario.duration_s, scenario.peer_count
        scenario = shorten(scenario, duration_s or whole_s, peers or all_peers)
    scenario = evolve(scenario, seed=scenario.seed if seed is None else seed)
    again += ["--seed", str(scenario.seed)]
    return scenario


def _run(
    scenario: "Scenario",
    out: Path | None,
    again: list[str],
    *,
    as_json: bool,
    beside_public: bool,
    beside_plain: bool,
) -> None:
    from sim.pictures import check_pictures, write_page
    from sim.report import (
        all_public,
        beside,
        beside_drafts,
        lines,
        summary,
        without_drafts,
        write_files,
    )
    from sim.run import run_scenario

    if out is not None:
        check_pictures()
        _make_folder(out)
    with _progress() as on_time:
        outcome = run_scenario(scenario, on_time)
    numbers = summary(outcome)
    if beside_public:
        with _progress() as on_time:
            numbers = beside(numbers, summary(run_scenario(all_public(scenario), on_time)))
    if beside_plain:
        with _progress() as on_time:
            plain = summary(run_scenario(without_drafts(scenario), on_time))
        numbers = beside_drafts(numbers, plain)
    if out is not None:
        write_files(outcome, out)
        write_page(outcome, out / "index.html")
    print(json.dumps(numbers) if as_json else "\n".join(lines(numbers)), flush=True)
    if not outcome.is_good:
        raise P2pinferError(f"a check failed; to reproduce it: {shlex.join(again)}")


def _hunt(runs: int, first_seed: int, out: Path | None, *, as_json: bool) -> None:
    """Look for a failure, shrink it, write it to a file, and say how to reproduce it."""

    def report(words: str, **found: object) -> None:
        told = {"runs": runs, "from_seed": first_seed, "found": found or None}
        print(json.dumps(told) if as_json else words, flush=True)

    from sim.hunt import SHRINKS_MAX, hunt, shrink
    from sim.toml import to_toml

    _make_folder(out or Path())
    with _progress() as on_share:
        found = hunt(runs, first_seed, lambda done: on_share(done / runs))
    if found is None:
        report(f"{runs} scenarios from seed {first_seed} on: no failure")
        return
    seed = found.scenario.seed
    if not as_json:
        print(f"seed {seed}: {found.text}", flush=True)
    with _progress() as on_share:
        found = shrink(found, lambda tries, _: on_share(tries / SHRINKS_MAX))
    path = (out or Path()) / f"found-{seed}.toml"
    path.write_text(to_toml(found.scenario))
    count = found.scenario.peer_count
    report(
        f"reproduced with {count} peers: {found.text}",
        seed=seed,
        checks=found.checks,
        text=found.text,
        peers=count,
        file=str(path),
    )
    raise P2pinferError(f"a check failed; to reproduce it: p2pinfer sim {path}")


def _make_folder(out: Path) -> None:
    """Make the folder of ``--out`` before the run that fills it; raises UserError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder --out {out}: {error.strerror}") from None


@contextmanager
def _progress() -> Iterator[Callable[[float], None]]:
    """Show the finished share as a bar, on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    if not sys.stderr.isatty():
        yield lambda _: None
        return
    columns = ("Simulating", BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda share: bar.update(task, completed=share)
