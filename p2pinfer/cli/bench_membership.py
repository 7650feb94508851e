"""``p2pinfer bench membership``."""

import json
import os
from functools import partial
from typing import Annotated

from p2pinfer.cli.noise import NOISE_CLIP, NoiseClip, check_noise
from p2pinfer.cli.options import AsJson, Model, option
from p2pinfer.cli.running import run_task
from p2pinfer.cli.sizes import check_range

LESSONS_MAX = 2_000
"""A pass over half of them takes minutes."""
PASSES_MAX = 1_000


def membership(
    *,
    model: Model = "default",
    lessons: Annotated[int, option("lessons", "Made-up facts, of which half are learned.")] = 32,
    passes: Annotated[int, option("passes", "Over the facts that are learned.")] = 15,
    noise_clip: NoiseClip = NOISE_CLIP,
    noise: Annotated[
        tuple[float, ...],
        option("noise", "Multipliers of the noise to compare.", consume_multiple=True),
    ] = (0.1, 0.5, 2.0),
    seed: Annotated[int, option("seed", "What facts and halves are drawn from.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure how well an attacker tells what a model learned, with and without noise."""
    from p2pinfer.bench.membership import membership_bench
    from p2pinfer.cli.model_argument import name_model
    from p2pinfer.cli.terminal import Spinner
    from p2pinfer.engine.training.descent import SECRET_BYTES
    from p2pinfer.node.model_supply import open_store, open_whole

    check_range("lessons", lessons, 4, LESSONS_MAX)
    check_range("passes", passes, 1, PASSES_MAX)
    for multiplier in noise:
        check_noise(multiplier, noise_clip)
    store = open_store()
    whole = open_whole(name_model(model, store), store)
    measure = partial(
        membership_bench,
        whole,
        lessons=lessons,
        passes=passes,
        norm=noise_clip,
        multipliers=noise,
        seed=seed,
        secret=os.urandom(SECRET_BYTES),
    )

    async def report() -> None:
        done = Spinner("Measuring …")
        try:
            found = await measure()
        finally:
            done()
        print(json.dumps(found, indent=None if as_json else 2))

    run_task(report)
