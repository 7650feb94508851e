"""``p2pinfer status``: what this machine does for its swarm, and peers for each other."""

import csv
import json
import sys
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from attrs import asdict

from p2pinfer.cli.options import AsJson, option
from p2pinfer.cli.running import run_task
from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import PeerId
from p2pinfer.logs import note

RATE_S = 0.5
"""Between the two samples that give speeds: about 30 tokens of one answer."""

NOTHING_RUNS = "no p2pinfer process is running here; to lend this machine to a swarm: p2pinfer join"

HEADINGS = ("session", "process", "with", "layers", "positions", "per s", "age", "idle")

PIPE_CHARS = 200
"""Width of the table in a pipe, which does not cut lines."""

Status = dict[str, Any]


def status(
    *,
    open_sessions: Annotated[
        bool,
        option("open-sessions", "List the sessions that are open on this machine.", negative=""),
    ] = False,
    by_peer: Annotated[
        bool, option("ledger", "Show the work done for each peer and by each peer.", negative="")
    ] = False,
    export_as: Annotated[
        Literal["csv", "jsonl"] | None,
        option(
            "export",
            "Print the ledger for other programs: csv by day and peer, jsonl with all statements.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print what each p2pinfer process on this machine does, and the ledger's totals."""
    from p2pinfer.node.ledger_db import open_books

    if bool(export_as) + open_sessions + by_peer > 1:
        raise UserError("choose one of --open-sessions, --ledger and --export")
    if export_as:
        export(open_books().export(), export_as)
        return
    if open_sessions:
        ps(as_json=as_json)
        return
    if by_peer:
        ledger(as_json=as_json)
        return
    found = look()
    accounts = open_books().accounts()
    served, used = (sum(getattr(each, side) for each in accounts) for side in ("served", "used"))
    if as_json:
        print(json.dumps({"processes": found, "served": served, "used": used}))
        return
    for each in found:
        print("\n".join(lines(each)))
    if not found:
        print(NOTHING_RUNS)
    print(
        f"earned   {served:,} layer-rows done for others, {used:,} by others for this machine (a"
        " layer-row is one token through one layer; see: status --ledger)"
    )


def ps(*, as_json: AsJson = False) -> None:
    """List the sessions that a peer here serves or a gateway here asks for."""
    found = [
        {"pid": each["pid"], "role": each["role"], **session}
        for each in look()
        for session in each["sessions"]
    ]
    if as_json:
        print(json.dumps(found))
        return
    if not found:
        print("no sessions are open on this machine")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading, no_wrap=True)
    for session in found:
        table.add_row(*map(Text, cells(session)))
    width = None if sys.stdout.isatty() else PIPE_CHARS
    Console(highlight=False, width=width).print(table)


def ledger(*, as_json: AsJson = False) -> None:
    """Show the work that this machine and others did for each other, in layer-rows."""
    from p2pinfer.node.ledger_db import open_books

    books = open_books()
    found, report = books.accounts(), books.report()
    served, used = (sum(getattr(each, side) for each in found) for side in ("served", "used"))
    if as_json:
        peers = [asdict(each) for each in found]
        print(json.dumps({"served": served, "used": used, "peers": peers, "credit": report}))
        return
    layer_rows = {each.peer: (each.served, each.used) for each in found}
    print(f"{'peer':<52} {'served':>14} {'used':>14} {'it signed':>12} {'we signed':>12}")
    signed = {each["peer"]: each for each in report["peers"]}
    for peer in dict.fromkeys([*layer_rows, *signed]):
        done, had = layer_rows.get(PeerId(peer), (0, 0))
        words = signed.get(peer, {})
        theirs, ours = (words.get(name, 0) / 1000 for name in ("signed_by_it", "signed_to_it"))
        agreed = " agreed" if words.get("agreed") else ""
        print(f"{peer:<52} {done:>14,} {had:>14,} {theirs:>12,.1f} {ours:>12,.1f}{agreed}")
    print(f"{'all':<52} {served:>14,} {used:>14,}")
    for line in _parts_and_space(report["peers"]):
        print(line)
    if unnamed := report["had_unnamed"]:
        print(
            f"{'asked for without a name, and signed for to nobody':<52} {unnamed / 1000:>14,.1f}"
        )
    note(
        "served and used are layer-rows: a layer-row is one token through one layer. Signed is how"
        " much of it the user has put its name to, in gigabyte-rows: one token through a gigabyte"
        " of weights. It counts parts of models and kept shares, too. Agreed: the peer has"
        " countersigned what we signed"
    )


def _parts_and_space(peers: Iterable[Status]) -> Iterable[str]:
    """Yield a line for parts of models and one for kept shares, where there were any."""
    sums = [each["amounts"] for each in peers]
    for name, unit, what in (
        ("sent", "GB", "parts of models"),
        ("kept", "GB days", "shares of models kept"),
    ):
        given, had = (sum(each[side][name] for each in sums) / 1000 for side in ("given", "had"))
        if given or had:
            yield f"{what:<52} {given:>11,.1f} {unit} for others, {had:,.1f} {unit} by others"


def export(rows: Iterable[Status], kind: Literal["csv", "jsonl"]) -> None:
    """Print the ledger: a line of JSON for each day and peer, and statement; or days as CSV."""
    if kind == "jsonl":
        for each in rows:
            print(json.dumps(each))
        return
    amounts = [f"{side}_{name}" for side in ("given", "had") for name in ("work", "sent", "kept")]
    table = csv.DictWriter(sys.stdout, ["day", "peer", *amounts], extrasaction="ignore")
    table.writeheader()
    table.writerows(each for each in rows if each["kind"] == "day")


def look() -> list[Status]:
    """Ask all processes twice, and return their status, with speeds."""
    import trio

    from p2pinfer.node.status_socket import ask_all

    found: list[Status] = []

    async def run() -> None:
        before = await ask_all()
        await trio.sleep(RATE_S if before else 0)
        found.extend(rated(before, await ask_all() if before else []))

    run_task(run)
    return found


def rated(before: Iterable[Status], now: Iterable[Status]) -> list[Status]:
    """Return the newer of two samples, with each process's and session's speed between them."""
    known = {each["pid"]: each for each in before}
    return [_rated(known[each["pid"]], each) for each in now if each["pid"] in known]


def _rated(before: Status, now: Status) -> Status:
    seconds: float = max(now["uptime_s"] - before["uptime_s"], 1e-3)

    def rate(old: Status, new: Status, count: str) -> float:
        grown: int = new[count] - old[count]  # negative if an answer was started again
        return round(max(grown, 0) / seconds, 1)

    known = {each["session"]: each for each in before["sessions"]}
    sessions = [
        each | {"positions_per_s": rate(known.get(each["session"], each), each, "positions")}
        for each in now["sessions"]
    ]
    rows = {"rows_per_s": rate(before, now, "rows")} if "rows" in now and "rows" in before else {}
    return now | rows | {"sessions": sessions}


def lines(found: Status) -> list[str]:
    """Return the lines about one process."""
    runs = f"(process {found['pid']}, for {ago(found['uptime_s'])})"
    if found["role"] == "gateway":
        waiting, open_ = found["answers_waiting"], len(found["sessions"])
        return [
            f"gateway  {found['url']} {runs}",
            f"state    {found['state']}, {found['model_name']}",
            f"answers  {found['answers_running']} running, {waiting} waiting",
            f"sessions {open_} of {found['sessions_max']}",
            *_punched(found),
        ]
    said = [f"{found['role']:8} {found['peer']} {runs}", f"state    {_state(found)}"]
    said += [f"address  {address}" for address in found.get("addresses", ())]
    if found.get("reached"):
        advice = f"; {found['advice']}" if found.get("advice") else ""
        said.append(f"reached  {found['reached']}{advice}")
    if found.get("port_mapping"):
        said.append(f"router   {found['port_mapping']}")
    said += _punched(found)
    if found.get("ms_per_layer_row"):
        first, _, end = (found["layers"] or "0:0").partition(":")
        row_ms = found["ms_per_layer_row"] * (int(end) - int(first))
        fastest = f", at most {1000 / row_ms:,.0f} a second" if row_ms else ""
        said.append(
            f"speed    {found['ms_per_layer_row']:.2f} ms for a layer of one row{fastest};"
            f" {found.get('rows_per_s', 0):,.0f} rows/s now, {found['rows']:,} so far"
        )
        requesters = sorted({short(peer) for each in found["sessions"] for peer in each["with"]})
        for_them = f", for {', '.join(requesters)}" if requesters else ""
        said.append(
            f"sessions {len(found['sessions'])} of {found['sessions_max']}{for_them};"
            f" {found['queued_rows']} rows queued"
        )
    return [*said, *_vouched(found)]


def _vouched(found: Status) -> list[str]:
    """Say how many are vouched for here without a name, and whether this peer vouches."""
    vouched = found.get("vouched", {})
    here, ring = vouched.get("for", 0), vouched.get("as_one_of", 0)
    who = "1 requester" if here == 1 else f"{here} requesters"
    words = [f"some serving peer vouches for {who} here"] if here else []
    if ring:
        words.append(f"this one vouches for one from this machine, as one of {ring}")
    return [f"credit   {'; '.join(words)}"] if words else []


def _punched(found: Status) -> list[str]:
    """Say how often a peer behind a router was reached without a relay, where that was tried."""
    won, lost = (found.get("punching", {}).get(name, 0) for name in ("won", "lost"))
    if not won + lost:
        return []
    return [f"punched  {won:,} of {won + lost:,} tries to connect with a peer without its relay"]


def _state(found: Status) -> str:
    where = f", {found['model_name']}" if "model_name" in found else ""
    layers = f" layers {found['layers']} of {found['layers_of_model']}" if "layers" in found else ""
    if found.get("resting"):
        return f"resting: {found['resting']};{layers}{where}"
    hidden = "; other peers cannot dial it (see: peers --why)" if found.get("hidden") else ""
    return f"{found['state']}{layers}{where}{hidden}"


def cells(session: Status) -> tuple[str, ...]:
    """Return a session as a row of a table."""
    return (
        session["session"][:8],
        f"{session['pid']} {session['role']}",
        "\n".join(map(short, session["with"])),
        session["layers"].replace(" ", "\n"),
        f"{session['positions']:,}",
        f"{session['positions_per_s']:.1f}",
        ago(session["age_s"]),
        ago(session["idle_s"]),
    )


def short(peer: str) -> str:
    """Return the end of a peer's id, which is enough to tell peers apart."""
    return f"…{peer[-6:]}"


def ago(seconds: float) -> str:
    """Return a duration in its two largest units."""
    whole = int(seconds)
    for unit, small, name, part in ((86_400, 3_600, "d", "h"), (3_600, 60, "h", "min")):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // small} {part}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
