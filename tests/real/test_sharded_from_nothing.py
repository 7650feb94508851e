"""Models in shards, on machines that have nothing: one adds them, the others fetch their layers."""

import shlex
from collections.abc import Sequence
from contextlib import ExitStack, aclosing
from pathlib import Path

import pytest
import trio

from p2pinfer.core.sampling import Sampling
from p2pinfer.node.model_supply import open_store
from p2pinfer.node.requester import ClientOptions, Machine, open_client
from tests.real.test_cli import joined
from tests.real.test_from_nothing import check_parts, store_in
from tests.support.alone import ANSWER_TOKENS, said_alone
from tests.support.commands import run
from tests.support.model_factory import write_model
from tests.support.recipes import CASES
from tests.support.sharded import write_shards
from tests.support.tiny_models import quantise
from transports.base import Reach

pytestmark = pytest.mark.real

NETWORK = "shards"
ALL_S_MAX = 120.0
GREEDY = Sampling(temperature=0.0)


async def said_by_swarm(
    options: ClientOptions, prompt: Sequence[int], count: int
) -> tuple[list[int], list[str]]:
    """Return what a swarm says, and the layers of its stages."""
    with trio.fail_after(ALL_S_MAX):
        async with open_client(options, open_store(), lambda _: None) as client:
            route = await client.find_route(lambda _: None)
            async with (
                client.open_session(route) as session,
                aclosing(session.generate(prompt, GREEDY, count)) as tokens,
            ):
                return [token.id async for token in tokens], [
                    f"{hop.first}:{hop.end}" for hop in route
                ]


@pytest.mark.parametrize(
    ("name", "keep"), [("gpt-oss", 0), pytest.param("deepseek2", 1, marks=pytest.mark.long)]
)
async def test_a_sharded_model_joins_from_nothing(
    name: str, keep: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each peer fetches its layers alone, the requester the ends alone; llama.cpp says the same."""
    full, whole = tmp_path / "full.gguf", tmp_path / "model.gguf"
    write_model(CASES[name].recipe, full)
    quantise(full, whole, "Q8_0")
    shards = write_shards(whole, tmp_path / "shards", tensors_max=12)
    assert len(shards) > 3
    prompt, answers = said_alone(whole)
    homes = [tmp_path / each for each in ("first", "second", "third", "asker")]
    layers = CASES[name].recipe.layers
    bounds = [keep, 2, 3, layers - keep]
    ranges = [f"{bounds[n]}:{bounds[n + 1]}" for n in range(3)]
    kept = f"--network {NETWORK} --keep-layers {keep}"
    with ExitStack() as peers:
        first = f"p2pinfer join --layers {ranges[0]} --model {shlex.quote(str(shards[2]))} {kept}"
        said = peers.enter_context(joined(homes[0], first))
        (line,) = [line for line in said if " chat " in line]
        words = shlex.split(line)
        seed = words[words.index("--bootstrap") + 1]
        seeded = store_in(homes[0])
        (manifest,) = seeded.models()
        way_in = f"--bootstrap {seed} --model {manifest.id} {kept}"
        for home, layers_ in zip(homes[1:3], ranges[1:], strict=True):
            peers.enter_context(joined(home, f"p2pinfer join --layers {layers_} {way_in}"))
        monkeypatch.setenv("P2PINFER_HOME", str(homes[3]))
        options = ClientOptions(
            manifest.id, (seed,), Reach(NETWORK), keep, Machine(2, 256), shows_tokens=True
        )
        answer, shares = await said_by_swarm(options, prompt, ANSWER_TOKENS)
        assert answer in answers
        assert shares == ranges
        check_parts(homes[1], seeded, manifest, manifest.needed(bounds[1], bounds[2]))
        check_parts(homes[2], seeded, manifest, manifest.needed(bounds[2], bounds[3]))
        check_parts(homes[3], seeded, manifest, manifest.ends(keep))
        if keep == 0:
            words = ["chat", "Hi", *shlex.split(way_in)]
            refused = run(homes[3], *words)
            assert refused.returncode == 2
            assert "say --show-tokens as well" in refused.stderr
