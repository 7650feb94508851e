"""``p2pinfer key``: the key of a private network."""

from pathlib import Path

from cyclopts import App

from p2pinfer.core.errors import UserError

app = App(name="key", help_format="plaintext")


@app.command
def new(file: Path, /) -> None:
    """Draw the key of a new private network, and write it to a file only its owner can read.

    Parameters
    ----------
    file: Path
        Where to write it; every peer of the network needs a copy.
    """
    from transports.secret import create_secret

    if not create_secret(file):
        raise UserError(f"{file} is there already: name another file")
    print(file)
