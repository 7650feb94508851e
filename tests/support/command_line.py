"""Running the command line in the tests' own process."""

import sys

import pytest

from p2pinfer.cli import main


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run the command line; gives its exit code."""
    monkeypatch.setattr(sys, "argv", ["p2pinfer", *words])
    try:
        main.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0
