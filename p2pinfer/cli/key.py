"""``p2pinfer key``: the key of a private network."""

from pathlib import Path

from cyclopts import App

from p2pinfer.core.errors import UserError

app = App(name="key", help_format="plaintext")


@app.command
def new(file: Path, /) -> None:
    """Create the key of a new private network, in a file that only its owner can read.

    Parameters
    ----------
    file: Path
        File to write; every peer of the network needs a copy.
    """
    from transports.secret import create_secret

    if not create_secret(file):
        raise UserError(f"{file} already exists: name another file")
    print(file)
