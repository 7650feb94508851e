"""``p2pinfer bench cheats`` and ``p2pinfer bench proofs``."""

from functools import partial
from pathlib import Path
from typing import Annotated

from p2pinfer.cli.bench_report import print_report
from p2pinfer.cli.options import AsJson, Model, option
from p2pinfer.cli.running import run_task
from p2pinfer.cli.sizes import check_range

CheatTrials = Annotated[int, option("trials", "Number of answers per cheat.")]
OnlyCheats = Annotated[
    tuple[str, ...],
    option("only", "Cheats to try, by the names in the report.", consume_multiple=True),
]


def cheats(
    *,
    model: Model = "default",
    trials: CheatTrials = 5,
    checkpoints: Annotated[
        int, option("checkpoints", "Minimum number of honest checkpoints to audit.")
    ] = 1000,
    seed: Annotated[int, option("seed", "Random seed for prompts and keys.")] = 1,
    only: OnlyCheats = (),
    as_json: AsJson = False,
) -> None:
    """Test audits against every known cheat and honest stages: real engines, in one process."""
    from p2pinfer.bench.cheats import cheats_bench
    from p2pinfer.bench.zoo import find_cheats
    from p2pinfer.node.model_supply import model_path

    check_range("trials", trials, 1)
    check_range("checkpoints", checkpoints, 1)
    path = model_path(model)
    measure = partial(
        cheats_bench,
        path,
        trials=trials,
        checkpoints=checkpoints,
        seed=seed,
        zoo=find_cheats(only),
    )
    run_task(lambda: print_report(measure, as_json=as_json))


def proofs(
    *,
    model: Model = "default",
    trials: CheatTrials = 5,
    openings: Annotated[int, option("openings", "Minimum number of honest rows to open.")] = 1000,
    seed: Annotated[int, option("seed", "Random seed for prompts, keys and rows.")] = 1,
    only: OnlyCheats = (),
    kept: Annotated[
        Path | None,
        option("kept", "File that keeps each trial; the same command goes on behind the last."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Test openings against every known cheat and honest stages: checked without any layer."""
    from p2pinfer.bench.opened_zoo import find_opened
    from p2pinfer.bench.proofs import proofs_bench
    from p2pinfer.cli.terminal import say
    from p2pinfer.node.model_supply import model_path

    check_range("trials", trials, 1)
    check_range("openings", openings, 1)
    path, zoo = model_path(model), find_opened(only)
    much = {"trials": trials, "openings": openings, "seed": seed}
    measure = partial(proofs_bench, path, **much, tell=say, zoo=zoo, kept=kept)
    run_task(lambda: print_report(measure, as_json=as_json))
