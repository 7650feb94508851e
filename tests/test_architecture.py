"""What the tree promises about itself."""

import ast
import importlib.metadata
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import p2pinfer
import p2pinfer.client.joining

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("p2pinfer", "peers", "scheduler", "transports", "sim")
TOP_LEVEL = {"pyproject.toml", "README.md", "LICENSE", "Makefile", "docs", "tests", *PACKAGES}

IMPORTERS = {
    "libp2p": "transports/libp2p/*",
    "llama_cpp": "p2pinfer/engine/llama/binding.py",
    "llguidance": "p2pinfer/engine/llama/constraints.py",
    "huggingface_hub": "p2pinfer/node/hub.py",
    "langchain_core": "p2pinfer/langchain.py",
    "starlette": "p2pinfer/api/*",
    "hypercorn": "p2pinfer/api/*",
}
"""Where each library may be imported; its types and errors stay there."""

FILE_LINES_SOFT_MAX = 500
"""A file longer than this needs a reason below. The limit is soft: a file about one subject may be
longer, and a short one about two subjects is still wrong."""
FUNCTION_LINES_SOFT_MAX = 70
LONG = {
    "p2pinfer/engine/llama/binding.py": "the one module that may hold llama.cpp's pointers",
}
"""`path` or `path:function` of longer ones, each with its reason."""

DOTTED = re.compile(rf"`((?:{'|'.join(PACKAGES)})(?:\.\w+)+)`")

THE_REST = {"common", "helpers", "misc", "other", "shared", "stuff", "tools", "util", "utils"}
"""Names of files that may hold anything."""

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
    """Yield the top-level name of each import, including those by `import_module("name")`."""
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
    """Another distribution's `scheduler` or `transports` would be imported instead of ours."""
    owners = importlib.metadata.packages_distributions()
    assert {owner for name in PACKAGES for owner in owners.get(name, ())} <= {"p2pinfer"}


def test_root_holds_only_the_fixed_names() -> None:
    """The top level is a map of the project; tools' leftovers begin with a dot or go elsewhere."""
    made = {"dist"}  # by `python -m build`
    assert {p.name for p in ROOT.iterdir() if p.name[0] != "."} - made <= TOP_LEVEL


@pytest.mark.parametrize("library", IMPORTERS)
def test_library_is_imported_only_by_its_modules(library: str) -> None:
    """Each foreign library has one interface module."""
    importers = [path for path in sources(*PACKAGES) if library in imported(parse(path))]
    assert importers
    assert [p for p in importers if not p.match(IMPORTERS[library])] == []


def test_ruff_bans_the_same_imports() -> None:
    """The editor's lint and this file name the same libraries and the same exceptions."""
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    banned = {name for name in lint["flake8-tidy-imports"]["banned-api"] if "." not in name}
    excepted = {path for path, rules in lint["per-file-ignores"].items() if "TID251" in rules}
    assert banned == set(IMPORTERS)
    assert excepted == {"tests/**", *IMPORTERS.values()}


@pytest.mark.slow  # it starts a process
def test_setup_needs_only_the_standard_library() -> None:
    """It runs before anything is installed."""
    allowed = sys.stdlib_module_names | {"p2pinfer"}
    for path in sources("p2pinfer/_setup"):
        assert set(imported(parse(path))) <= allowed, path
    subprocess.run([sys.executable, "-S", "-c", "import p2pinfer"], cwd=ROOT, check=True)


def test_the_library_is_at_the_top_of_the_package() -> None:
    """At the top of the package, which promises nothing else."""
    assert p2pinfer.connect is p2pinfer.client.joining.connect
    with pytest.raises(AttributeError, match="nonsense"):
        p2pinfer.nonsense  # type: ignore[attr-defined] # noqa: B018


def test_imports_are_seen_in_every_form() -> None:
    """The walk finds nested, renamed, dotted and dynamic imports, but not relative ones."""
    code = (
        "import a.b as x\nfrom c.d import e\nfrom . import f\n"
        "def g():\n    import h\n    importlib.import_module('i.j')\n"
    )
    assert sorted(imported(ast.parse(code))) == ["a", "c", "h", "i"]


def long_things(path: Path) -> Iterator[str]:
    """Yield the file and its functions that are over their limits."""
    text = (ROOT / path).read_text()
    if len(text.splitlines()) > FILE_LINES_SOFT_MAX:
        yield str(path)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            if node.end_lineno - node.lineno >= FUNCTION_LINES_SOFT_MAX:
                yield f"{path}:{node.name}"


def test_long_files_and_functions_have_a_reason() -> None:
    """A file fits one reading and a function one screen, unless LONG says why not."""
    long = {thing for path in sources(*PACKAGES, "tests") for thing in long_things(path)}
    assert long == set(LONG)  # remove a reason that is no longer needed


def twins(trees: Iterable[tuple[str, ast.Module]]) -> dict[str, list[str]]:
    """Return the names of public classes that several modules define, with the modules."""
    found: dict[str, list[str]] = {}
    for name, tree in trees:
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(name)
    return {name: where for name, where in found.items() if len(where) > 1}


def test_no_two_public_classes_share_a_name() -> None:
    """A name means one thing in all packages."""
    assert twins((str(path), parse(path)) for path in sources(*PACKAGES)) == {}


def test_equal_class_names_are_found() -> None:
    """Private and nested classes may share a name."""
    first = ast.parse("class A: pass\nclass _B: pass\nclass C:\n    class D: pass\n")
    second = ast.parse("class A(Base): pass\nclass _B: pass\nclass D: pass\n")
    assert twins([("first", first), ("second", second)]) == {"A": ["first", "second"]}


def test_no_file_has_a_catch_all_name() -> None:
    """A file is named after its content."""
    assert [path for path in sources(*PACKAGES) if path.stem in THE_REST] == []


def dangling(text: str) -> list[str]:
    """Return the dotted names in backticks that name none of our modules or their members."""
    return [name for name in sorted(set(DOTTED.findall(text))) if not _is_there(name)]


def _is_there(name: str) -> bool:
    module, rest = name, list[str]()
    while not (found := [p for p in _places(module) if p.exists()]):
        module, _, last = module.rpartition(".")
        if not module:
            return False
        rest.insert(0, last)
    text = found[0].read_text() if found[0].is_file() else ""
    return all(re.search(rf"\b{each}\b", text) for each in rest)


def _places(module: str) -> list[Path]:
    path = ROOT.joinpath(*module.split("."))
    return [path.with_suffix(".py"), path / "__init__.py"]


def test_dotted_names_in_prose_exist() -> None:
    """Whatever a docstring points to exists."""
    found = {str(path): dangling((ROOT / path).read_text()) for path in sources(*PACKAGES)}
    assert {path: names for path, names in found.items() if names} == {}


def test_dangling_names_are_found() -> None:
    """Of modules, their members, and attributes of those."""
    there = "``scheduler.plan`` `transports.base.Channel.close` ``p2pinfer.connect``"
    assert dangling(f"{there} ``scheduler.worth`` `transports.base.Chanel`") == [
        "scheduler.worth",
        "transports.base.Chanel",
    ]


def unfinished(text: str) -> Iterator[str]:
    """Yield the marks of unfinished work: such comments, and NotImplementedError."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        comment = token.type == tokenize.COMMENT and LATER.search(token.string)
        name = token.type == tokenize.NAME and token.string == "NotImplementedError"
        if comment or name:
            yield token.string


def test_nothing_is_unfinished() -> None:
    """Everything in the tree works."""
    found = {
        str(path): marks
        for path in sources(*PACKAGES)
        if (marks := list(unfinished((ROOT / path).read_text())))
    }
    assert found == {}


def test_unfinished_work_is_found() -> None:
    """The search finds comments and errors, and ignores strings."""
    text = "# TODO(me): x\n#FIXME y\nraise NotImplementedError\ns = 'TODO NotImplementedError'\n"
    assert list(unfinished(text)) == ["# TODO(me): x", "#FIXME y", "NotImplementedError"]
