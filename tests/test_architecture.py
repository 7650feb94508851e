"""What the tree promises about itself."""

import ast
import importlib.metadata
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import p2pinfer
import p2pinfer.client.library

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("p2pinfer", "peers", "scheduler", "transports", "sim")
TOP_LEVEL = {"pyproject.toml", "README.md", "Makefile", "tests", *PACKAGES}

IMPORTERS = {
    "libp2p": {
        "transports/libp2p/transport.py",  # the transport, and the files that it is made of
        "transports/libp2p/gossip.py",
        "transports/libp2p/host.py",
        "transports/libp2p/library_channel.py",
        "transports/libp2p/peer_finding.py",
        "transports/libp2p/muxer.py",
        "transports/libp2p/private_noise.py",
        "transports/libp2p/stream.py",
        "transports/libp2p/noise_records.py",
    },
    "llama_cpp": {"p2pinfer/engine/llama/binding.py"},
    "starlette": {
        "p2pinfer/api/app.py",
        "p2pinfer/api/completions.py",
        "p2pinfer/api/guard.py",
        "p2pinfer/api/server.py",
        "p2pinfer/api/streams.py",
    },
    "hypercorn": {"p2pinfer/api/server.py"},
}
"""Libraries that only the named modules may import; foreign types and errors stop there."""

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
LONG = {
    "p2pinfer/engine/llama/binding.py": "the one module that may hold llama.cpp's pointers",
    "peers/asking/chain.py": "one session as its requester sees it, from opening to mending",
    "tests/transports/libp2p/test_walls.py": "one section per way to bring a peer down",
}
"""`path` or `path:function` of what may be longer, each with its reason."""

LATER = re.compile(r"\b(TODO|FIXME|XXX)\b")


def sources(*folders: str) -> list[Path]:
    """Return every Python file of these folders, relative to the root."""
    return sorted(
        path.relative_to(ROOT) for name in folders for path in (ROOT / name).rglob("*.py")
    )


def parse(path: Path) -> ast.Module:
    """Return the syntax tree of a file of ours."""
    return ast.parse((ROOT / path).read_text(), str(path))


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield the top-level name of each import, also of those by `import_module("name")`."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name.partition(".")[0] for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module.partition(".")[0]
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                yield module.partition(".")[0]


def test_no_other_distribution_owns_our_names() -> None:
    """A `scheduler` or `transports` from elsewhere would be imported in place of ours."""
    owners = importlib.metadata.packages_distributions()
    assert {owner for name in PACKAGES for owner in owners.get(name, ())} <= {"p2pinfer"}


def test_root_holds_only_the_fixed_names() -> None:
    """The top level is a map of the project; what a tool leaves there has a dot or a home."""
    made = {"dist"}  # by `python -m build`
    assert {p.name for p in ROOT.iterdir() if p.name[0] != "."} - made <= TOP_LEVEL


@pytest.mark.parametrize("library", IMPORTERS)
def test_library_is_imported_by_its_modules_alone(library: str) -> None:
    """Each foreign library has one seam."""
    importers = {str(path) for path in sources(*PACKAGES) if library in imported(parse(path))}
    assert importers <= IMPORTERS[library]


def test_ruff_bans_the_same_imports() -> None:
    """The editor's lint and this file name the same libraries and the same exceptions."""
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    banned = {name for name in lint["flake8-tidy-imports"]["banned-api"] if "." not in name}
    excepted = {path for path, rules in lint["per-file-ignores"].items() if "TID251" in rules}
    excepted |= {str(p) for p in sources(*PACKAGES) if "noqa: TID251" in (ROOT / p).read_text()}
    assert banned == set(IMPORTERS)
    assert excepted == {"tests/**"}.union(*IMPORTERS.values())


def test_setup_needs_only_the_standard_library() -> None:
    """It runs before anything is installed."""
    allowed = sys.stdlib_module_names | {"p2pinfer"}
    for path in sources("p2pinfer/_setup"):
        assert set(imported(parse(path))) <= allowed, path
    subprocess.run([sys.executable, "-S", "-c", "import p2pinfer"], cwd=ROOT, check=True)


def test_the_library_is_where_its_users_look() -> None:
    """At the top, and nothing else is promised there."""
    assert p2pinfer.connect is p2pinfer.library.connect
    with pytest.raises(AttributeError, match="nonsense"):
        p2pinfer.nonsense  # type: ignore[attr-defined] # noqa: B018


def test_imports_are_seen_in_every_form() -> None:
    """The walk finds nested, renamed, dotted and dynamic imports, and not the relative ones."""
    code = (
        "import a.b as x\nfrom c.d import e\nfrom . import f\n"
        "def g():\n    import h\n    importlib.import_module('i.j')\n"
    )
    assert sorted(imported(ast.parse(code))) == ["a", "c", "h", "i"]


def long_things(path: Path) -> Iterator[str]:
    """Yield the file and its functions that are over their limits."""
    text = (ROOT / path).read_text()
    if len(text.splitlines()) > FILE_LINES_MAX:
        yield str(path)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            if node.end_lineno - node.lineno >= FUNCTION_LINES_MAX:
                yield f"{path}:{node.name}"


def test_long_files_and_functions_have_a_reason() -> None:
    """A file fits in one reading and a function on one screen, unless LONG says why not."""
    long = {thing for path in sources(*PACKAGES, "tests") for thing in long_things(path)}
    assert long <= set(LONG)


def unfinished(text: str) -> Iterator[str]:
    """Yield the marks of work left for later: such comments, and the error that stands for it."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        comment = token.type == tokenize.COMMENT and LATER.search(token.string)
        name = token.type == tokenize.NAME and token.string == "NotImplementedError"
        if comment or name:
            yield token.string


def test_nothing_is_left_for_later() -> None:
    """What is in the tree works."""
    found = {
        str(path): marks
        for path in sources(*PACKAGES)
        if (marks := list(unfinished((ROOT / path).read_text())))
    }
    assert found == {}


def test_work_left_for_later_is_seen() -> None:
    """The search finds comments and errors, and leaves strings alone."""
    text = "# TODO(me): x\n#FIXME y\nraise NotImplementedError\ns = 'TODO NotImplementedError'\n"
    assert list(unfinished(text)) == ["# TODO(me): x", "#FIXME y", "NotImplementedError"]
