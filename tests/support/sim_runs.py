"""Short forms of the shipped scenarios, for tests."""

from sim.run import Outcome, run_scenario
from sim.scenario import Scenario, load_scenario, shorten

DURATION_S, PEERS_MAX = 40.0, 8


def short(name: str) -> Scenario:
    """Return a shipped scenario with fewer peers and a shorter time."""
    return shorten(load_scenario(name), DURATION_S, PEERS_MAX)


def run_short(name: str) -> Outcome:
    """Run one."""
    return run_scenario(short(name))
