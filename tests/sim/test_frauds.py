"""Proofs in a virtual network: what one requester finds, all that can check it act upon."""

from attrs import evolve

from sim.run import run_scenario
from sim.scenario import LiarsTable, load_scenario, shorten
from sim.toml_schema import Spread

PEERS = 10


def test_all_peers_learn_of_a_cheat_and_of_no_honest_peer() -> None:
    """Each run checks by itself that no honest peer is listed as a proven cheat."""
    short = shorten(load_scenario("hostile"), 40.0, PEERS)
    (group,) = short.peers
    scenario = evolve(
        short,
        seed=3,
        peers=(evolve(group, layers=Spread(30, 30), join_s=Spread(0, 2)),),
        liars=(LiarsTable(kind="skips", share=1 / PEERS),),
        requests=evolve(short.requests, per_minute=30),  # so that one of them meets the liar
    )
    events = (outcome := run_scenario(scenario)).record.events
    assert outcome.record.violations == []
    assert events["caught"] >= 1
    assert events["proven"] >= PEERS - 1
