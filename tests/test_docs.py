"""README and docs/: the links, files, commands and figures that they name exist."""

import importlib.util
import inspect
import re
import shlex
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

import transports.libp2p.host  # noqa: F401 -- libp2p runs ldconfig once; a fast test starts no process
from p2pinfer.cli.main import app, parse
from p2pinfer.core import errors
from tests.support import cli_page, generated_pages, limits_page

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
WRITTEN = [page for page in PAGES if page.name not in generated_pages.PAGES]
"""Pages written entirely by hand."""

README_LINES_MAX = 150
STOPS_MAX = 12
GLOSSARY_TERMS_MIN = 30

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
A_PATH = re.compile(r"(?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:md|py|toml)")
FOLDERS = {"docs", "p2pinfer", "peers", "scheduler", "sim", "tests", "transports"}
NOT_OURS = re.compile(r"\b(TODO|FIXME|XXX)\b|(?<![\w/])#\d+\b|\bissue \d+|/work/|/root/")

names = [str(page.relative_to(ROOT)) for page in PAGES]


def anchors(page: Path) -> set[str]:
    """Return the anchors within a page, as repository hosts derive them from headings."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


def without_fences(text: str) -> str:
    """Return a page's text outside its blocks of code."""
    return FENCE.sub("", text)


def commands_in(text: str) -> list[list[str]]:
    """Return the command lines of p2pinfer in a page's shell blocks."""
    lines = [
        line.removeprefix("$ ")
        for language, block in FENCE.findall(text)
        if language in {"sh", "console"}
        for line in block.splitlines()
        if language == "sh" or line.startswith("$ ")
    ]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("p2pinfer ")]


def table_rows(text: str, heading: str) -> list[list[str]]:
    """Return the cells of the table under a heading, without its own two lines."""
    section = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def of_code(cell: str) -> str:
    """Return the text of a cell's first code span."""
    found = CODE.search(cell)
    assert found, cell
    return found[1]


def test_readme_is_short() -> None:
    """Longer texts belong in docs/."""
    assert len(README.read_text().splitlines()) <= README_LINES_MAX


def test_readme_links_every_page() -> None:
    """A page without a link is not found."""
    linked = {link.partition("#")[0] for link in LINK.findall(README.read_text())}
    assert {str(page.relative_to(ROOT)) for page in PAGES if page != README} <= linked


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_links_between_pages_resolve(page: Path) -> None:
    """A link names an existing file, and a heading in it."""
    for link in LINK.findall(page.read_text()):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_named_files_exist(page: Path) -> None:
    """A path in a page exists in the tree."""
    for span in CODE.findall(without_fences(page.read_text())):
        if A_PATH.fullmatch(span) and span.split("/")[0] in FOLDERS:
            assert (ROOT / span).exists(), span


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_named_modules_exist(page: Path) -> None:
    """The modules that `python -m` is shown to run exist."""
    for module in re.findall(r"python -m (tests[\w.]+)", page.read_text()):
        assert importlib.util.find_spec(module), module


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_shown_commands_parse(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that a page shows is valid."""
    monkeypatch.setenv("P2PINFER_CONFIG", "")
    for words in commands_in(page.read_text()):
        parse(words[1:])


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_commands_within_sentences_parse(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is one in a sentence, if it is complete."""
    monkeypatch.setenv("P2PINFER_CONFIG", "")
    for span in CODE.findall(without_fences(page.read_text())):
        if span.startswith("p2pinfer ") and not re.search(r"…|--help|COMMAND", span):
            parse(shlex.split(span)[1:])


def test_benchmarks_name_commands_that_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each figure can be measured again with the command beside it."""
    monkeypatch.setenv("P2PINFER_CONFIG", "")
    text = (ROOT / "docs/benchmarks.md").read_text()
    rows = re.findall(r"^\| `((?!p2pinfer)\w[^`]*)` \|", text, re.MULTILINE)
    assert {"decode", "recovery", "cheats"} <= set(rows)
    for row in rows:
        parse(["bench", *shlex.split(row)])


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_shown_python_compiles(page: Path) -> None:
    """Examples are valid Python."""
    for language, block in FENCE.findall(page.read_text()):
        if language == "python":
            compile(block, str(page), "exec")


def test_readme_shows_commands() -> None:
    """So the tests above have commands to check."""
    shown = {words[1] for words in commands_in(README.read_text())}
    assert {"demo", "join", "chat", "serve", "sim"} <= shown


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_named_targets_of_make_exist(page: Path) -> None:
    """The Makefile has the targets that pages name."""
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text()
    typed = re.findall(r"`make (\w+)", text) + re.findall(r"^make (\w+)", text, re.MULTILINE)
    assert set(typed) <= targets


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_pages_speak_only_of_the_project(page: Path) -> None:
    """No unfinished work, no issue numbers, no paths of one machine."""
    assert NOT_OURS.findall(without_fences(page.read_text())) == []


@pytest.mark.parametrize("page", generated_pages.PAGES)
def test_generated_parts_are_current(page: str) -> None:
    """`python -m tests.support.generated_pages` would change nothing."""
    text = (ROOT / "docs" / page).read_text()
    assert text == generated_pages.with_part(text, generated_pages.PAGES[page]())


def test_a_page_without_markers_is_refused() -> None:
    """Generated text goes only between markers."""
    with pytest.raises(ValueError, match="markers"):
        generated_pages.with_part("# A page\n", "a part")


def test_every_limit_has_a_reason() -> None:
    """Each row of the tables names constants that say why they are what they are."""
    for row in (row for rows in limits_page.TABLES.values() for row in rows):
        said = limits_page.docstrings(row.module)
        assert set(row.names.split()) <= set(said), row.names


def test_values_are_shown_in_their_units() -> None:
    """The unit is the last word of a constant's name."""
    shown = limits_page.formatted
    assert shown("ROWS_BYTES_MAX", 6 << 20) == "6 MiB"
    assert shown("NAME_BYTES_MAX", 300) == "300 bytes"
    assert shown("IDLE_S_MAX", 900.0) == "15 min"
    assert shown("WAIT_S_MAX", 1.8) == "1.8 s"
    assert shown("PERIOD_MS_DEFAULT", 10_000) == "10 s"
    assert shown("NEWS_PER_S", 100) == "100"
    assert shown("PEERS_MAX", 4096) == "4,096"


def test_every_option_has_its_variable() -> None:
    """The page gives the rule for naming variables once, for all options."""
    for words, command in cli_page.commands(app):
        for option in filter(cli_page.is_option, cli_page.shown(command)):
            expected = f"P2PINFER_{option.name[2:].upper().replace('-', '_')}"
            assert cli_page.variable(option) == expected, (words, option.name)


def test_commands_page_names_every_exit_code() -> None:
    """The table of exit codes matches the errors."""
    said = {row[0] for row in table_rows((ROOT / "docs/cli.md").read_text(), "Exit codes")}
    codes = {str(value) for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert said == codes


def test_commands_page_names_every_endpoint() -> None:
    """The page lists every address the gateway answers at, except the page's own files."""
    text = (ROOT / "docs/cli.md").read_text()
    sources = (path.read_text() for path in (ROOT / "p2pinfer/api").glob("*.py"))
    routes = {route for source in sources for route in re.findall(r'Route\("([^"{]+)', source)}
    assert routes
    assert {route for route in routes if route.rstrip("/") not in text} == set()


def stops(heading: str) -> list[tuple[str, str]]:
    """Return file and code of each row of a table in Architecture."""
    rows = table_rows((ROOT / "docs/architecture.md").read_text(), heading)
    return [(of_code(row[-3]), of_code(row[-2])) for row in rows]


WALK = stops("Where does a token go?")
OTHERS = [
    (of_code(file), of_code(code))
    for _, file, code in table_rows(
        (ROOT / "docs/architecture.md").read_text(), "Where to look for the rest"
    )
]


def test_the_walk_of_a_token_is_short() -> None:
    """It is read in a minute."""
    assert 0 < len(WALK) <= STOPS_MAX


@pytest.mark.parametrize(("file", "code"), [*WALK, *OTHERS])
def test_every_stop_of_the_walk_is_there(file: str, code: str) -> None:
    """A stop can be imported, and is defined in the file that the table names."""
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    found: Any = reduce(getattr, code.split("."), module)
    found = found.fget if isinstance(found, property) else found
    defined = inspect.getsourcefile(inspect.unwrap(found))
    assert defined
    assert Path(defined).resolve() == ROOT / file


def test_the_four_questions_of_a_newcomer_are_answered() -> None:
    """Rows, placement, receipts and HTTP each have a file in the tables."""
    files = {file for file, _ in [*WALK, *OTHERS]}
    assert {
        "peers/serving/stage_session.py",
        "scheduler/placement.py",
        "p2pinfer/core/witness.py",
        "p2pinfer/api/completions.py",
    } <= files


def test_every_package_is_on_the_map() -> None:
    """The architecture page lists each package, by its folder or its parent folder."""
    text = (ROOT / "docs/architecture.md").read_text()
    for package in ("p2pinfer", "peers"):
        for room in (ROOT / package).iterdir():
            if (room / "__init__.py").exists() and not room.name.startswith("_"):
                assert f"{package}/{room.name}/" in text, room


def test_glossary_is_in_order_and_shows_where() -> None:
    """Each term has one or two sentences, and the file that defines it."""
    lines = (ROOT / "docs/glossary.md").read_text().splitlines()
    rows = [line.strip("|").split(" | ") for line in lines if line.startswith("|")][2:]
    terms = [row[0].strip() for row in rows]
    assert len(terms) >= GLOSSARY_TERMS_MIN
    assert terms == sorted(terms, key=str.lower)
    for row in rows:
        assert (ROOT / of_code(row[2])).exists(), row
