"""``p2pinfer --install-completion``: completion of commands and options in the shell."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

Shell = Literal["bash", "zsh", "fish"]


def install_completion(
    *,
    shell: Annotated[
        Shell | None, Parameter(help="Shell to install for. If omitted: the current one.")
    ] = None,
    output: Annotated[
        Path | None, Parameter(help="File to write. If omitted: where the shell looks.")
    ] = None,
) -> None:
    """Write the shell's completion script, and have its startup file load it."""
    from cyclopts.completion.detect import ShellDetectionError

    from p2pinfer.cli.main import app
    from p2pinfer.core.errors import UserError
    from p2pinfer.logs import note

    try:
        path = app.install_completion(shell=shell, output=output, add_to_startup=output is None)
    except ShellDetectionError:
        raise UserError("cannot tell which shell this is: add --shell bash, zsh or fish") from None
    print(path)
    note("open a new terminal to start using it")
