"""``p2pinfer peers``: which peers serve which layers, and why this machine does or does not."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from p2pinfer.cli.machine_options import MACHINE, MachineFlags
from p2pinfer.cli.options import (
    REACH,
    AsJson,
    Memory,
    Network,
    ReachFlags,
    WaysIn,
    option,
)
from p2pinfer.cli.running import run_task
from p2pinfer.cli.sizes import parse_bytes
from p2pinfer.core import errors
from p2pinfer.core.errors import NobodyServes, UserError
from p2pinfer.core.model_names import readable_name
from p2pinfer.core.ways import DIRECTLY, NOT_AT_ALL
from p2pinfer.logs import note

if TYPE_CHECKING:
    from rich.table import Table

    from p2pinfer.core.advertisement import Advertisement
    from p2pinfer.node.observer import ObservedPeer

BAR_CHARS_MIN, BAR_CHARS_MAX = 8, 40

OTHER_CHARS = 72
"""Width of the other columns of the table."""

WATCH_S = 2.0

LAYERS = "1:10 is layers 1 to 9, counted from 0"

WORDS = (
    "ms/layer: time for one token through one layer · queue: waiting rows, one per token · free:"
    " free session slots · standing: how reliable it has been for this machine, 50 % for a new peer"
    " · away: round trip; hidden if nobody can call it"
)

HEADINGS = ("peer", "layers", "", "state", "ms/layer", "queue", "free", "standing", "away")


def peers(
    *,
    bootstrap: WaysIn = (),
    network: Network = "main",
    watch: Annotated[bool, option("watch", "Refresh every two seconds.", negative="")] = False,
    why: Annotated[
        bool,
        option("why", "Instead, show why this machine serves or does not.", negative=""),
    ] = False,
    memory: Memory = None,
    as_json: AsJson = False,
    reach: ReachFlags = REACH,
    machine: MachineFlags = MACHINE,
) -> None:
    """Show each peer's layers, speed, load, standing with this machine and round trip."""
    if why:
        doctor(
            bootstrap=bootstrap,
            network=network,
            memory=memory,
            as_json=as_json,
            reach=reach,
            machine=machine,
        )
        return
    import trio

    from p2pinfer.node.local_peers import ways_in
    from p2pinfer.node.observer import open_look
    from p2pinfer.node.requester import NO_WAY_IN
    from p2pinfer.node.swarm_connection import looks_around

    named = reach.ways_in(bootstrap)
    way = reach.of(network, named)
    ways = ways_in(named, way.network)
    if not (ways or looks_around(way)):
        raise UserError(NO_WAY_IN)

    async def run() -> None:
        async with open_look(ways, way) as look:
            while True:
                if not look.is_connected:
                    raise NobodyServes(look.why_nobody())
                _show(await look.rows(), watch=watch, as_json=as_json)
                if not watch:
                    return
                await trio.sleep(WATCH_S)
                await look.renew()

    run_task(run, interrupted=errors.EXIT_DONE if watch else errors.EXIT_INTERRUPTED)


def _show(rows: "Sequence[ObservedPeer]", *, watch: bool, as_json: bool) -> None:
    """Print the rows; with ``watch``, a terminal shows them in place of the last ones."""
    from rich.console import Console

    if as_json:
        print(json.dumps([row.as_dict() for row in rows]), flush=True)
        return
    console = Console(highlight=False)
    if watch and console.is_terminal:
        console.clear()
    for model in dict.fromkeys(row.said.model for row in rows):
        width = min(max(console.width - OTHER_CHARS, BAR_CHARS_MIN), BAR_CHARS_MAX)
        some = [row for row in rows if row.said.model == model]
        console.print(table(some, width))
        for line in (*detours(some), *odds(some)):
            console.print(line, soft_wrap=True)
    note(WORDS if rows else "no peer advertises anything")
    sys.stdout.flush()


def table(rows: "Sequence[ObservedPeer]", bar_chars: int) -> "Table":
    """Return the table of one model's peers."""
    from rich.table import Table
    from rich.text import Text

    said = rows[0].said
    name = readable_name(said.model_name)
    title = f"{name}, {said.layers} layers ({LAYERS}), {said.model[:12]}…"
    made = Table(title=Text(title), title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in HEADINGS:
        made.add_column(heading, no_wrap=True)
    for row in rows:
        made.add_row(*map(Text, cells(row, bar_chars)))
    return made


def detours(rows: "Sequence[ObservedPeer]") -> list[str]:
    """Return a line for each way in which peers are reached that nobody can dial."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.way not in ("", DIRECTLY, NOT_AT_ALL):
            found.setdefault(row.way, []).append(f"…{row.said.peer[-6:]}")
    return [f"reached {way}: {', '.join(peers)}" for way, peers in sorted(found.items())]


def odds(rows: "Sequence[ObservedPeer]") -> list[str]:
    """Return lines for each peer that was to open rows: what that tells, and why it did not."""
    found = []
    for row in rows:
        name, proved = f"…{row.said.peer[-6:]}", row.proved
        if proved and proved.rows:
            count = round(proved.rows, 1)  # of some only a part of the layers
            opened = f"{int(count):,}" if count == int(count) else f"{count:,}"
            found.append(
                f"{name}: of the {proved.of_rows:,} rows that it computed in checked answers,"
                f" {opened} were opened to this machine, and every step of them held; if a tenth"
                " of its rows had been false, it would have been caught with a chance of"
                f" {100 * proved.chance:.0f} %"
            )
        if proved and proved.why_not:
            found.append(f"{name} was not proved the last time: {proved.why_not}")
    return found


def _state(said: "Advertisement") -> str:
    """Say what a peer does; one that drains and has no layers only keeps shares of the model."""
    is_keeper = said.state.value == "draining" and said.first == said.end
    return "keeping" if is_keeper else said.state.value


def cells(row: "ObservedPeer", bar_chars: int) -> tuple[str, ...]:
    """Return a table row's cells."""
    said = row.said
    if not said.addresses:
        away = "hidden"
    elif row.reached is False:
        away = "no answer"
    else:
        away = "" if row.round_trip_s is None else f"{1000 * row.round_trip_s:.1f} ms"
    return (
        f"…{said.peer[-6:]}",
        bar(said, bar_chars),
        f"{said.first}:{said.end}" if said.first < said.end else "none",
        _state(said),
        f"{said.row_us / 1000:.2f}" if said.row_us else "",
        str(said.queued_rows),
        f"{said.sessions_free}/{said.sessions_max}" if said.sessions_max else "",
        "" if row.standing is None else f"{100 * row.standing:.0f} %",
        away,
    )


def bar(said: "Advertisement", chars: int) -> str:
    """Draw a peer's layers within the model."""
    width = min(said.layers, chars)
    first = said.first * width // said.layers
    end = max(first + (said.first < said.end), said.end * width // said.layers)
    return "░" * first + "█" * (end - first) + "░" * (width - end)


def doctor(
    *,
    bootstrap: WaysIn = (),
    network: Network = "main",
    memory: Memory = None,
    as_json: AsJson = False,
    reach: ReachFlags = REACH,
    machine: MachineFlags = MACHINE,
) -> None:
    """Say in plain words why this machine is or is not serving."""
    from p2pinfer.cli.doctor import Patient, examine
    from p2pinfer.engine.llama.devices import backends, search
    from p2pinfer.node.local_peers import peers_here, ways_in
    from p2pinfer.node.model_supply import open_store
    from p2pinfer.node.observer import open_look
    from p2pinfer.places import cache_dir

    limits, memory_bytes = machine.machine(), parse_bytes("memory", memory)
    store = open_store()

    named = reach.ways_in(bootstrap)
    way = reach.of(network, named)
    here, ways = peers_here(way.network), ways_in(named, way.network)

    async def run() -> None:
        async with open_look(ways, way) as look:
            patient = Patient(
                look, here, store, limits, memory_bytes, cache_dir(), search(), backends()
            )
            findings = await examine(patient)
        healthy = all(finding.is_good for finding in findings)
        if as_json:
            found = [finding.as_dict() for finding in findings]
            print(json.dumps({"healthy": healthy, "findings": found}))
        else:
            for finding in findings:
                print(f"{'ok ' if finding.is_good else 'BAD'}  {finding.text}")
        if not healthy:
            sys.exit(errors.EXIT_FAILED)

    run_task(run)
