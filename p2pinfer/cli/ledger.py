"""``p2pinfer ledger``: who worked for whom."""

import json

from attrs import asdict
from cyclopts import App

from p2pinfer.cli.options import AsJson
from p2pinfer.logs import note

app = App(name="ledger", help_format="plaintext")


@app.default
def ledger(*, as_json: AsJson = False) -> None:
    """Show the work that this machine did for others and others for it, in rows times layers."""
    from p2pinfer.node.ledger_db import open_books

    found = open_books().accounts()
    served, used = (sum(getattr(each, side) for each in found) for side in ("served", "used"))
    if as_json:
        report = {"served": served, "used": used, "peers": [asdict(each) for each in found]}
        print(json.dumps(report))
        return
    print(f"{'peer':<52} {'served':>14} {'used':>14}")
    for each in found:
        print(f"{each.peer:<52} {each.served:>14,} {each.used:>14,}")
    print(f"{'all':<52} {served:>14,} {used:>14,}")
    note("counted in layer-rows: one token through one layer")
