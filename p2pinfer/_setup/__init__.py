"""Set up .venv with nothing but Python's standard library: `python3 -m p2pinfer._setup`."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - it runs on whatever Python a person has
    sys.exit(f"p2pinfer needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}.")
