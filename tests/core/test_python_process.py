"""Helper processes run our code, whatever is in a person's current folder."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from p2pinfer.core import python_process
from p2pinfer.core.python_process import python_command, python_environment
from p2pinfer.engine.template import ChatTemplate

ROOT = Path(__file__).parents[2]

SHADOWS = ("numpy", "json", "random", "jinja2", "trio", "p2pinfer", "llama_cpp")
"""Modules that helpers import, whose names a person's files may well have."""


@pytest.fixture
def shadowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder whose modules end any process that imports them."""
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the {name} of this folder ran')\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def test_a_helper_imports_nothing_from_the_current_folder(shadowed: Path) -> None:
    """The chat template's process starts as usual."""
    template = ChatTemplate("{{ messages[0].content }}")
    assert (await template.render([{"role": "user", "content": "hi"}])).text == "hi"
    await template.end()


def test_a_command_imports_nothing_from_the_current_folder(shadowed: Path) -> None:
    """A bare command starts as usual."""
    done = subprocess.run(
        python_command("p2pinfer", "--version"),
        capture_output=True,
        text=True,
        check=False,
        env=python_environment(),
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_checkout_that_is_not_installed_is_found(shadowed: Path) -> None:
    """Its folder precedes the person's PYTHONPATH, whose empty entries are dropped."""
    found = python_environment({"PYTHONPATH": f"{os.pathsep}/elsewhere", "HOME": "/home/me"})
    assert found == {"PYTHONPATH": f"{ROOT}{os.pathsep}/elsewhere", "HOME": "/home/me"}
    where = subprocess.run(
        [sys.executable, "-P", "-c", "import p2pinfer; print(p2pinfer.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        env=python_environment({}),
    )
    assert Path(where.stdout.strip()) == ROOT / "p2pinfer" / "__init__.py"


def test_an_installed_copy_is_found_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adding its path would put it before Python's own library."""
    monkeypatch.setattr(python_process, "_ROOT", Path("/venv/lib/python3.11/site-packages"))
    assert python_environment({"HOME": "/home/me"}) == {"HOME": "/home/me"}


def test_every_helper_is_started_this_way() -> None:
    """``python -m`` is written in one place; setup runs in the checkout it sets up."""
    setup = {"p2pinfer/_setup/__main__.py", "p2pinfer/_setup/llama.py"}
    apart = {"p2pinfer/core/python_process.py", *setup}
    folders = ("p2pinfer", "peers", "scheduler", "transports", "sim")
    found = {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value == "-m"
    }
    assert found == apart
