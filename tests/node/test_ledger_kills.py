"""Books balance whenever a process is killed: at each statement of SQL, one after the other."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.node import killed_books


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_books_balance_after_every_kill(tmp_path: Path) -> None:
    """A user's and a server's, over hundreds of kills; what was stated never contradicts itself."""
    command = [sys.executable, killed_books.__file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100
