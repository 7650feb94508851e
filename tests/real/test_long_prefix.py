"""Agents of one gateway whose long prompts begin alike, and a peer that is killed between them."""

from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
import trio

from p2pinfer.client.answer import Answer, ChatOptions
from p2pinfer.client.library import Swarm, open_swarm
from p2pinfer.core.limits import CONTEXT_DEFAULT, LONG_CONTEXT_DEFAULT
from p2pinfer.core.sampling import Sampling
from p2pinfer.node.local_swarm import local_swarm, share_layers
from p2pinfer.node.model_supply import name_model, open_store, open_whole
from p2pinfer.node.requester import Client, ClientOptions, Machine, open_client
from p2pinfer.node.status_socket import ask_all
from tests.support.model_factory import Recipe, write_model
from tests.support.tiny_models import quantise

pytestmark = [pytest.mark.real, pytest.mark.long]

PROMPT_TOKENS, SHARED_TOKENS = 10_000, 9_900
OWN = 3 * [PROMPT_TOKENS - SHARED_TOKENS]
SESSIONS = 4
ALL_S_MAX = 1200.0
READ_AGAIN_MAX = 0.2
"""Of the time that reading all takes, for a hundredth that is new and a copy of the rest."""

TOKENS = 8
GREEDY = ChatOptions(Sampling(temperature=0.0), TOKENS)


class Agents:
    """Agents that share their instructions, and ask one swarm."""

    def __init__(self, swarm: Swarm, vocabulary: int) -> None:
        drawn = np.random.default_rng(7).integers(3, vocabulary, (8, PROMPT_TOKENS))
        self.swarm = swarm
        self.prompts: list[list[int]] = []
        for own in drawn.tolist():
            self.prompts.append([*drawn[0, :SHARED_TOKENS].tolist(), *own[SHARED_TOKENS:]])

    async def ask(self, number: int) -> Answer:
        """Return an agent's answer."""
        answer = Answer()
        async with aclosing(self.swarm.answer(self.prompts[number], GREEDY, answer)) as pieces:
            async for _ in pieces:
                pass
        return answer

    async def ask_while(self, number: int, other: int) -> tuple[Answer, Answer]:
        """Return an agent's answer, and that of another one who asks in the middle of it."""
        answer, beside = Answer(), None
        async with aclosing(self.swarm.answer(self.prompts[number], GREEDY, answer)) as pieces:
            async for _ in pieces:
                beside = beside or await self.ask(other)
        assert beside
        return answer, beside


async def in_one_session(client: Client, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the answers of a session that reads these prompts one after the other."""
    found = []
    route = await client.find_route(lambda _: None, PROMPT_TOKENS + TOKENS)
    async with client.open_session(route, positions=PROMPT_TOKENS + TOKENS) as session:
        for prompt in prompts:
            async with aclosing(session.generate(prompt, GREEDY.sampling, TOKENS)) as tokens:
                found.append([token.id async for token in tokens])
    return found


async def rows() -> dict[str, int]:
    """Return how many rows each peer has computed."""
    return {said["peer"]: said["rows"] for said in await ask_all() if said["role"] == "peer"}


async def test_what_agents_share_is_read_once_and_survives_a_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In longer sessions than usual: a copy of one, and of one whose middle stage was replaced."""
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path / "home"))
    full, path = tmp_path / "full.gguf", tmp_path / "model.gguf"
    write_model(Recipe("seed_oss", 5, {"context_length": LONG_CONTEXT_DEFAULT}), full)
    quantise(full, path, "Q8_0")
    store = open_store()
    model = open_whole(name_model(str(path), store, lambda *_: None), store)
    machine = Machine(SESSIONS, CONTEXT_DEFAULT, 1, LONG_CONTEXT_DEFAULT)
    ranges = share_layers(model, 3, 1, machine)
    with trio.fail_after(ALL_S_MAX):
        async with local_swarm(model, [*ranges, ranges[1]], machine=machine) as running:
            ways_in = tuple(peer.addresses[0] for peer in running)
            options = ClientOptions(
                model.id, ways_in, "local", machine=machine, audit_rate=0.0, proof_rate=0.0
            )
            async with (
                open_client(options, store, lambda _: None) as client,
                open_swarm(client, SESSIONS) as swarm,
            ):
                agents = Agents(swarm, 250)
                due = await in_one_session(client, agents.prompts[:4])
                begun = await rows()
                first, second = await agents.ask_while(0, 1)
                read = await rows()
                middle = next(lent.session.route[1].peer for lent in swarm.pool._idle)
                next(peer for peer in running if peer.peer == middle).process.kill()
                third, fourth = await agents.ask_while(2, 3)
                end = await rows()
    answers = (first, second, third, fourth)
    assert [each.prompt_tokens - each.reused_tokens for each in answers] == [PROMPT_TOKENS, *OWN]
    assert [each.spoken for each in answers] == due
    taken, spare = [hop["peer"] for hop in first.route], third.route[1]["peer"]
    assert [hop["peer"] for hop in fourth.route] == [taken[0], spare, taken[2]]
    assert spare != middle
    for peer in taken:
        assert PROMPT_TOKENS <= read[peer] - begun[peer] < PROMPT_TOKENS + 2 * OWN[0]
    for peer in (taken[0], taken[2]):
        assert end[peer] - read[peer] < 3 * OWN[0]
    assert PROMPT_TOKENS <= end[spare] - read[spare] < PROMPT_TOKENS + 3 * OWN[0]
    whole, copied, _, again = (each.time_to_first_token_ms for each in answers)
    assert max(copied, again) < READ_AGAIN_MAX * whole
