"""Scenario files: what is read, and the errors for those that cannot be used."""

from pathlib import Path

import pytest

from p2pinfer.core.errors import UserError
from sim.scenario import Scenario, load_scenario, shipped
from sim.toml_schema import Spread, explain

GOOD = 'about = "x"\n[[peers]]\ncount = 4\n'


def load(folder: Path, text: str) -> Scenario:
    """Read a scenario's text."""
    path = folder / "it.toml"
    path.write_text(text)
    return load_scenario(str(path))


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    """Peers and a sentence are enough."""
    found = load(tmp_path, GOOD)
    assert found.peer_count == 4
    assert found.model.layers == 30


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("about = 3", "it.toml: about must be a text, not 3"),
        ('about = "x"', "it.toml lacks peers: peers of one kind"),
        (GOOD + "cuont = 3", "it.toml: peers[0] has no key cuont: did you mean count?"),
        (GOOD + "row_ms = [3, 1]", "must be a number, [low, high], or"),
        (GOOD + "row_ms = 0", "it.toml: peers[0].row_ms must be at least 0.001, not 0"),
        (GOOD + "row_ms = true", "it.toml: peers[0].row_ms must be a number, [low, high]"),
        (GOOD + "count = 5", "is not TOML"),
        (GOOD + "loss = 0.9", "it.toml: peers[0].loss must be from 0 to 0.5, not 0.9"),
        (GOOD + 'regions = ["mars"]', "it.toml: there is no region mars"),
        (GOOD + "[model]\nlayers = 4\nkeep = 2", "model.keep leaves no layers"),
        (GOOD + "[model]\nlayers = 2.5", "it.toml: model.layers must be a whole number, not 2.5"),
        (GOOD + "[model]\ncontext = 64", "model.context is 64"),
        (GOOD + '[[liars]]\nkind = "sings"', "liars.kind must be one of copies, skips, garbles"),
        (GOOD + "[[cuts]]\nregions = []\nat_s = 9\nheal_s = 3", "a cut must heal after it began"),
        (GOOD + '[regions]\nnames = ["a", "b"]', "regions.round_trip_ms must be 2 rows"),
        (GOOD + "[requests]\nanswer = -1", "requests.answer must be at least 1, not -1"),
        (GOOD + "[requests]\nburst_at_s = 3", "requests.burst_at_s must be an array"),
        (GOOD + "model = 3", "has no key model"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, text: str, said: str) -> None:
    """One sentence names the key and what it may be."""
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    """Mistyping a shipped scenario's name lists them all."""
    with pytest.raises(UserError, match=r"there is no scenario hume: name a file or .*home"):
        load_scenario("hume")


@pytest.mark.parametrize("name", shipped())
def test_what_is_shipped_can_be_read(name: str) -> None:
    """Every scenario of the package says what it is about."""
    assert load_scenario(name).about


def test_the_explanation_names_every_key() -> None:
    """Every possible key of a file is explained."""
    told = "\n".join(explain(Scenario))
    for key in ("[[peers]]", "row_ms", "[churn]", "killed", "round_trip_ms", "[[liars]]"):
        assert key in told


def test_a_spread_is_written_as_it_is_read() -> None:
    """Numbers, bounds and lognormal ones."""
    for value in (3, [1, 2], {"median": 5, "sigma": 0.5}):
        assert Spread.read(value).write() == value
