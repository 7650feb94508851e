"""Options for answers, and their defaults."""

from pathlib import Path

import pytest

from p2pinfer.cli.answer_options import AnswerFlags
from p2pinfer.cli.options import RelayFlags
from p2pinfer.cli.serve import _access
from p2pinfer.core.errors import EXIT_USAGE, UserError
from p2pinfer.core.sampling import Sampling
from p2pinfer.engine.gguf.sampling_advice import Advice
from tests.support.command_line import run
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
        (AnswerFlags(stop=("",)), "--stop ''"),
        (
            AnswerFlags(certificate=Path("/dev/null/x")),
            "--certificate .*: /dev/null is no folder",
        ),
    ],
)
def test_an_option_out_of_range_is_named(flags: AnswerFlags, name: str) -> None:
    """As it was typed."""
    with pytest.raises(UserError, match=name):
        flags.options()


@pytest.mark.parametrize("words", ["config join", "service", "join", "peers"])
def test_a_size_is_checked_before_anything_begins(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the options are only shown, or written into a service's file."""
    assert run(monkeypatch, *words.split(), "--memory", "much") == EXIT_USAGE
    told = capsys.readouterr()
    assert "--memory much is not a size" in told.err
    assert not told.out


@pytest.mark.parametrize("origin", ["chat.example.org", "https://chat.example.org/", "https://"])
def test_what_is_no_origin_is_refused(
    origin: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A browser never says it, so it would allow nobody."""
    assert run(monkeypatch, "serve", "--local", "1", "--cors-origin", origin) == EXIT_USAGE
    assert "not how a browser names a site" in capsys.readouterr().err


def test_origins_that_browsers_say_are_taken() -> None:
    """Those of apps, too."""
    origins = ("*", "null", "https://a.example:8443", "app://obsidian.md", "tauri://localhost")
    assert _access("localhost", None, origins).origins == origins


def test_the_router_is_asked_unless_a_person_says_no() -> None:
    """By those who run a peer; a swarm inside a program never does."""
    assert not Reach().maps_port
    assert RelayFlags().of(Reach()).maps_port
    assert not RelayFlags(map_port=False).of(Reach()).maps_port
