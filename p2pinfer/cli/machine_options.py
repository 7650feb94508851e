"""Options that say how much of this machine may be used, and their checks."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from p2pinfer.cli.options import USE, option
from p2pinfer.cli.sizes import check_range
from p2pinfer.core.limits import (
    CONTEXT_DEFAULT,
    CONTEXT_MIN,
    LONG_CONTEXT_DEFAULT,
    ROWS_PER_DECODE_MAX,
    SESSIONS_DEFAULT,
)

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it
    from p2pinfer.node.requester import Machine

SESSIONS_MAX = ROWS_PER_DECODE_MAX
"""Every session may have a row in one decode; llama.cpp aborts the process on a larger decode."""

_LONGEST = f"{CONTEXT_DEFAULT:,}, and {LONG_CONTEXT_DEFAULT:,} for some as memory allows"
_CONTEXT = f"Maximum tokens per session. If omitted: {_LONGEST}."


@Parameter(name="*")
@dataclass(frozen=True)
class MachineFlags:
    """How much of this machine may be used."""

    sessions: Annotated[int, option("sessions", "Maximum concurrent sessions.", group=USE)] = (
        SESSIONS_DEFAULT
    )
    context: Annotated[int | None, option("context", _CONTEXT, group=USE)] = None
    threads: Annotated[
        int | None,
        option(
            "threads",
            "Threads of an engine, at most one per usable core. If omitted: as many as make it"
            " faster here, which is measured once; the engines of a machine share its cores.",
            group=USE,
        ),
    ] = None

    gpu: Annotated[
        str,
        option(
            "gpu",
            "GPU that holds this machine's layers: its name as p2pinfer peers --why lists it, off,"
            " or auto for the one that is likely to be fastest, where it computes exactly.",
            group=USE,
        ),
    ] = "auto"

    def machine(self) -> "Machine":
        """Return these flags as a Machine; raises UserError."""
        from p2pinfer.core.checks import POSITIONS_MAX
        from p2pinfer.engine.cores import usable_cores
        from p2pinfer.engine.llama.devices import chosen
        from p2pinfer.node.requester import Machine

        check_range("sessions", self.sessions, 1, SESSIONS_MAX)
        if self.context is not None:
            check_range("context", self.context, CONTEXT_MIN, POSITIONS_MAX)
        if self.threads is not None:
            check_range("threads", self.threads, 1, usable_cores())  # more would only spin
        gpu = chosen(self.gpu)
        if self.context is None:
            usual, longest = CONTEXT_DEFAULT, LONG_CONTEXT_DEFAULT
            return Machine(self.sessions, usual, self.threads, longest, gpu=gpu)
        return Machine(self.sessions, self.context, self.threads, gpu=gpu)


MACHINE = MachineFlags()
