"""A tiny model of every architecture in a real swarm whose middle peer dies in mid-answer."""

import math
import tempfile
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import pytest
import trio

from p2pinfer.bench.recovery import HOLDERS, STAGES, wait_known
from p2pinfer.bench.victims import NETWORK, Victims
from p2pinfer.core.ids import PeerId
from p2pinfer.core.sampling import Sampling
from p2pinfer.node.local_swarm import share_layers
from p2pinfer.node.model_supply import name_model, open_store, open_whole
from p2pinfer.node.requester import Client, ClientOptions, Machine, open_client
from tests.support.alone import ANSWER_TOKENS, said_alone
from tests.support.model_factory import write_model
from tests.support.patience import while_it_moves
from tests.support.recipes import CASES
from tests.support.tiny_models import TINY, quantise, write_tiny

pytestmark = [pytest.mark.real, pytest.mark.long]

SILENCE_S_MAX = 600.0
"""Between two signs of progress. On a busy machine, six processes that load, probe and serve take
many minutes together, but never so long for one step."""
KILLED_AT = 8
GREEDY = Sampling(temperature=0.0)


async def say_by_swarm(
    client: Client, victims: Victims | None, prompt: Sequence[int], said: list[int]
) -> None:
    """Add to ``said`` what a swarm says while the stage in its middle is killed, if wanted."""
    route = await client.find_route(lambda _: None)
    async with (
        client.open_session(route) as session,
        aclosing(session.generate(prompt, GREEDY, ANSWER_TOKENS)) as tokens,
    ):
        async for token in tokens:
            said.append(token.id)
            if victims and len(said) == KILLED_AT:
                victims.kill(PeerId(session.route[1].peer))


def written(home: Path) -> int:
    """Count what peers have logged: they name each step, and much else."""
    return sum(log.stat().st_size for log in home.glob("log-*"))


BY_HAND = {f"{name}-by-hand": tiny for name, tiny in TINY.items()}


def write_full(name: str, path: Path) -> None:
    """Write a tiny model in float32."""
    if name in CASES:
        write_model(CASES[name].recipe, path)
    else:
        write_tiny(BY_HAND[name], path)


@pytest.mark.parametrize("name", [*CASES, *BY_HAND])
async def test_an_answer_survives_a_killed_stage(name: str, tmp_path: Path) -> None:
    """The swarm says what llama.cpp says alone.

    Where that depends on settings, in which slices with layers of other kinds may differ, it may
    also say what it says when nobody dies.
    """
    full, path = tmp_path / "full.gguf", tmp_path / "model.gguf"
    write_full(name, full)
    quantise(full, path, "Q8_0")
    prompt, answers = said_alone(path)
    store = open_store()
    model = open_whole(name_model(str(path), store, lambda *_: None), store)
    machine = Machine(sessions=2, context=256)
    ranges = share_layers(model, STAGES, 1, machine) * HOLDERS
    said: list[int] = []
    with tempfile.TemporaryDirectory(prefix="p2pinfer-") as folder:
        home = Path(folder)
        async with trio.open_nursery() as nursery:
            victims = Victims(nursery, model, machine, ranges, home, ready_s_max=math.inf)
            async with while_it_moves(
                lambda: (len(victims.serving), written(home), len(said)), SILENCE_S_MAX
            ):
                await victims.start()
                options = ClientOptions(model.id, victims.ways_in(), NETWORK, machine=machine)
                async with open_client(options, store, lambda _: None) as client:
                    await wait_known(client, victims, known_s_max=math.inf)
                    if len(answers) > 1:
                        answers.append([])
                        await say_by_swarm(client, None, prompt, answers[-1])
                    await say_by_swarm(client, victims, prompt, said)
            nursery.cancel_scope.cancel()
    assert said in answers
