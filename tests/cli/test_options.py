"""Options for answers, and their defaults."""

import pytest

from p2pinfer.cli.answer_options import AnswerFlags
from p2pinfer.cli.options import RelayFlags
from p2pinfer.core.errors import UserError
from p2pinfer.core.sampling import Sampling
from p2pinfer.engine.gguf.sampling_advice import Advice
from transports.base import Reach


def test_by_default_nothing_is_penalised_or_cut_short() -> None:
    """Code, JSON and lists repeat words, and the model decides where an answer ends."""
    how = AnswerFlags(seed=7).options()
    assert how.sampling == Sampling(temperature=0.7, seed=7)
    assert not how.sampling.is_penalised
    assert (how.max_tokens, how.system) == (None, None)


def test_options_override_the_models_advice_which_overrides_defaults() -> None:
    """Even an empty option does."""
    advice = Advice({"temperature": 0.2, "repeat_penalty": 1.2, "min_p": 0.0}, "Be brief.")
    how = AnswerFlags(seed=7, temperature=0.0, min_p=0.1).options(advice)
    assert how.sampling == Sampling(temperature=0.0, repeat_penalty=1.2, min_p=0.1, seed=7)
    assert how.system == "Be brief."
    assert AnswerFlags(system="").options(advice).system == ""
    assert AnswerFlags(system="Rhyme.").options(advice).system == "Rhyme."


def test_a_new_seed_is_drawn_each_time() -> None:
    """Two requests without a seed do not get the same answer."""
    assert len({AnswerFlags().options().sampling.seed for _ in range(5)}) > 1


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (AnswerFlags(top_p=2.0), "--top-p"),
        (AnswerFlags(repeat_penalty=0.0), "--repeat-penalty"),
        (AnswerFlags(max_tokens=0), "--max-tokens"),
    ],
)
def test_an_option_out_of_range_is_named(flags: AnswerFlags, name: str) -> None:
    """As it was typed."""
    with pytest.raises(UserError, match=name):
        flags.options()


def test_the_router_is_asked_unless_a_person_says_no() -> None:
    """By those who run a peer; a swarm inside a program never does."""
    assert not Reach().maps_port
    assert RelayFlags().of(Reach()).maps_port
    assert not RelayFlags(map_port=False).of(Reach()).maps_port
