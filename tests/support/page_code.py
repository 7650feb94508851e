"""The code on ``docs/clients.md``, and running it as a reader would."""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
ADDRESS = "http://127.0.0.1:11550"
RUN_S_MAX = 300.0
"""For a program that asks a few short questions, on a busy machine."""

_SECTION = re.compile(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks() -> dict[str, list[tuple[str, str]]]:
    """Return each section's pieces of code, and their languages."""
    return {name: _BLOCK.findall(text) for name, text in _SECTION.findall(PAGE.read_text())}


def run_section(
    name: str, here: Mapping[str, str], python: str, environment: dict[str, str], folder: Path
) -> str:
    """Run a section's code; return what it prints, and assert that it succeeds.

    Args:
        name: the section's heading.
        here: what stands in place of what: addresses.
        python: the interpreter that has the client.
        environment: of the process.
        folder: where it runs.
    """
    printed = ""
    for language, shown in blocks()[name]:
        code = shown
        for old, new in here.items():
            code = code.replace(old, new)
        command = [python, "-c"] if language == "python" else ["sh", "-e", "-c"]
        done = subprocess.run(
            [*command, code],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            cwd=folder,
            timeout=RUN_S_MAX,
        )
        assert done.returncode == 0, f"{name}: {done.stderr[-3000:]}"
        printed += done.stdout
    assert printed.strip(), name
    return printed
