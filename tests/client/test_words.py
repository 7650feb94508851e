"""Texts in the reader's language: the table is whole, and sentences of the code are found in it."""

import re
from html.parser import HTMLParser
from importlib.resources import files
from itertools import chain
from json import loads

import pytest

from p2pinfer.cli import repl
from p2pinfer.client.words import Words, language_of, table_path, words_of
from p2pinfer.core.ids import PeerId
from p2pinfer.core.trust import Audited, AuditVerdict, Trust, rows_text

PAGE = files("p2pinfer.api").joinpath("static")
NAMES = {"p2pinfer", "English", "español"}
"""On the page, and the same in every language."""

TABLE = loads(table_path("es").read_text("utf-8"))


class Texts(HTMLParser):
    """Gathers what a person reads or hears of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Gather attributes that are read out."""
        del tag
        named = ("aria-label", "placeholder", "title")
        self.found |= {value for name, value in attrs if name in named and value}

    def handle_data(self, data: str) -> None:
        """Gather a text."""
        self.found |= {data.strip()} - {""}


def texts_of_scripts() -> set[str]:
    """Return all texts that the page's scripts give to ``t``, in a call's first argument."""
    found = set()
    for script in PAGE.iterdir():
        if script.name.endswith(".js") and script.name != "words.js":
            source = script.read_text("utf-8")
            for call in re.finditer(r"(?<![\w.])t\(", source):
                depth, at, quoted = 1, call.end(), False
                while depth and (quoted or depth > 1 or source[at] != ","):
                    quoted ^= source[at] == '"'
                    depth += 0 if quoted else (source[at] in "([{") - (source[at] in ")]}")
                    at += 1
                argument = source[call.end() : at].rpartition("?")[2]
                found |= set(re.findall(r'"([^"]*)"', argument))
    return found


def texts_of_the_terminal() -> set[str]:
    """Return all texts that the terminal's chat has translated."""
    sources = (
        files("p2pinfer.cli").joinpath(f"{name}.py") for name in ("chat", "repl", "terminal")
    )
    call = re.compile(r'(?:words\(\)|self\._words|\b_)\("([^"]+)"')
    return {text for source in sources for text in call.findall(source.read_text("utf-8"))}


def test_page_and_terminal_are_whole_in_spanish() -> None:
    """Each text has its sentence, which keeps the values; none is there for nothing."""
    pages = [each.read_text("utf-8") for each in PAGE.iterdir() if each.name.endswith(".html")]
    written = Texts("".join(pages)).found - NAMES
    states = re.search(r"const STATES = {(.*?)}", PAGE.joinpath("map.js").read_text(), re.DOTALL)
    assert states
    needed = {
        *written,
        *texts_of_scripts(),
        *texts_of_the_terminal(),
        *re.findall(r': "(.+?)"', states[1]),
        *repl.COMMANDS.values(),
        repl.KEYS,
        *map(str, AuditVerdict),
    }
    assert needed - TABLE.keys() == set()
    for english, spanish in TABLE.items():
        places = r"{\d}"
        assert sorted(re.findall(places, english)) == sorted(re.findall(places, spanish)), english


def test_what_a_conversation_refuses_is_said_in_spanish() -> None:
    """Each error of the terminal's commands, whatever it is about."""
    source = files("p2pinfer.cli").joinpath("repl.py").read_text("utf-8")
    errors = re.findall(r'UserError\(f?"([^"]+)"', source)
    assert len(errors) > 10
    for error in errors:
        said = re.sub(r"{[^}]+}", "x", error)
        assert words_of("es")(said) != said, said
        for part in words_of("es")(said).split("; "):
            assert part not in said, part


PEER = PeerId("12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp")


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 1.0])
@pytest.mark.parametrize(
    "audits", [(), (AuditVerdict.SAME,), (AuditVerdict.PROVED,), tuple(AuditVerdict)]
)
def test_what_was_checked_is_said_in_spanish(rate: float, audits: tuple[AuditVerdict, ...]) -> None:
    """Each line of what trust says, as the code writes it."""
    found = tuple(
        Audited(PEER, 1, 10, each, ("this machine",), text=rows_text(4, 80)) for each in audits
    )
    trust = Trust(stages=3, positions=80, rate=rate, audits=found)
    said = words_of("es")
    for line in chain([trust.line()], trust.details()):
        spanish = said(line)
        assert not re.search(
            r"\b(peer|signed|was|were|checked|proved|rows|machine|trusted)\b", spanish.lower()
        )


def test_what_the_table_lacks_stays_english() -> None:
    """A text of a later release is shown as it is, and values keep what they are."""
    probing = "probing this machine's own layers, 0:1 and 6:7 for settings that are fast and exact"
    assert words_of("es")(f"{probing} (once on this machine) …").startswith("probando las capas")
    assert (
        words_of("es")("an unheard-of sentence of 7 words") == "an unheard-of sentence of 7 words"
    )
    assert words_of("es")("nobody serves layers 3, 4") == "nadie sirve las capas 3, 4"
    assert Words("en")("layers {0}:{1}", 1, 10) == "layers 1:10"


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({}, "en"),
        ({"LANG": "es_EC.UTF-8"}, "es"),
        ({"LANG": "es"}, "es"),
        ({"LANG": "es_ES.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "C", "LC_MESSAGES": "es_MX"}, "es"),
        ({"LANG": "est"}, "en"),
        ({"LANG": "fr_FR.UTF-8", "LC_ALL": ""}, "en"),
    ],
)
def test_language_of_the_environment(environment: dict[str, str], language: str) -> None:
    """The first variable of POSIX that is set counts."""
    assert language_of(environment) == language
