"""What the page is told of the swarm: who is there, and which way answers go."""

import trio
import trio.testing
from trio.testing import MockClock

from p2pinfer.api.swarm_state import GONE_S_MAX, LOOK_S
from peers.asking.repair import Repair
from tests.support.fake_engines import FakeStage
from tests.support.fake_gateway import Call, fake_gateway
from tests.support.swarm import CONTEXT, peer

WORDS = {"model": "toy-model", "prompt": "one two three", "max_tokens": 6}


async def test_route_names_who_took_a_lost_peers_place(autojump_clock: MockClock) -> None:
    """On the map while the answer is made, in its account, and in the next one's."""
    asked = {**WORDS, "max_tokens": 20, "stream": True}
    async with fake_gateway() as (_, client, app), trio.open_nursery() as nursery:
        made = client.made
        whole, watching, asking, again = (
            Call("/v1/completions", asked),
            Call("/api/events"),
            Call("/v1/completions", asked),
            Call("/v1/completions", asked),
        )
        lost, place = made.route[1], FakeStage(10, 20, context=CONTEXT)
        await nursery.start(made.add, peer("spare"), place)
        spare = made.route.pop()
        client.repair = Repair(lambda *_: [spare], lambda _: None)
        await whole.run(app)
        nursery.start_soon(watching.run, app)
        made.ends.machine.decode_s = LOOK_S
        nursery.start_soon(asking.run, app)
        await watching.wait_for(b'"tokens": 2')
        made.leave[1]()
        with trio.fail_after(60 * LOOK_S):
            await watching.wait_for(spare.peer.encode())
        assert not asking.done
        await asking.wait_for(b"[DONE]")
        await again.run(app)
        watching.leave()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    routes = [account_route(call) for call in (whole, asking, again)]
    before = [hop.peer for hop in made.route]
    after = [spare.peer if each == lost.peer else each for each in before]
    assert routes == [before, after, after]
    assert text_of(asking) == text_of(again) == text_of(whole)


def account_route(call: Call) -> list[str]:
    """Return who made the only answer of a stream, as its account says."""
    choices = [each["choices"][0] for each in call.events]
    (account,) = [each["p2pinfer"] for each in choices if "p2pinfer" in each]
    return [hop["peer"] for hop in account["route"]]


def text_of(call: Call) -> str:
    """Return the text of a stream's only answer."""
    return "".join(each["choices"][0]["text"] for each in call.events)


async def test_events_tell_what_changes(autojump_clock: MockClock) -> None:
    """Everything at first, then answers as they come, and peers that leave."""
    async with fake_gateway() as (_, client, app), trio.open_nursery() as nursery:
        watching = Call("/api/events")
        nursery.start_soon(watching.run, app)
        await watching.wait_for(b"event: answers")
        state = watching.events[0]
        assert [peer["state"] for peer in state["peers"]] == ["serving"] * 3
        assert state["complete"]
        client.made.ends.machine.decode_s = LOOK_S
        asking = Call("/v1/completions", {**WORDS, "stream": True})
        nursery.start_soon(asking.run, app)
        await watching.wait_for(b'"tokens": 2')
        (answer,) = watching.events[-1]
        assert answer["route"] == [
            {"peer": peer["peer"], "layers": f"{peer['first']}:{peer['end']}"}
            for peer in state["peers"]
        ]
        assert {peer["round_trip_ms"] for peer in state["peers"]} == {10}
        assert {peer["way"] for peer in state["peers"]} <= {"directly", "not at all"}
        gone = client.made.route.pop()
        await watching.wait_for(b'"state": "gone"')
        seen = {peer["peer"]: peer["state"] for peer in watching.events[-1]["peers"]}
        assert seen[gone.peer] == "gone"
        await trio.sleep(GONE_S_MAX + 1)
        assert gone.peer not in {peer["peer"] for peer in watching.events[-1]["peers"]}
        client.made.route.append(gone)
        watching.leave()
        await trio.testing.wait_all_tasks_blocked()
        assert watching.done
