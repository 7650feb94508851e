"""What each machine has of who asks over a path: whose packets came, its log, and its files."""

import json
import sqlite3
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from p2pinfer.node.identity_lock import hold_identity
from tests.natlab.test_hidden_swarm import START_S_MAX, Started
from tests.support.natlab.hosts import Host
from tests.support.natlab.internet import Internet
from tests.support.processes import stop
from tests.support.tiny_models import TINY, write_tiny

pytestmark = [pytest.mark.real, pytest.mark.long]  # seven processes

ASKER = "9.9.9.9"
RELAYS = ("5.5.5.5", "6.6.6.6")
STAGES = ("7.7.7.7", "8.8.8.8")
LAYERS = ("1:4", "4:6")
TOKENS = 24


def contacts_of(internet: Internet, monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """Return from which address packets came to which machine, filled as they come."""
    found, arrive = set[tuple[str, str]](), internet._arrive

    def note(node: Any, packet: Any) -> None:
        found.add((".".join(map(str, packet.source[0])), node.address))
        arrive(node, packet)

    monkeypatch.setattr(internet, "_arrive", note)
    return found


def kept(home: Path) -> bytes:
    """Return all that a machine has: its log and its files, but for the model's parts."""
    files = (each for each in home.rglob("*") if each.is_file() and "store" not in each.parts)
    return b"\n".join(each.read_bytes() for each in files)


def users_of(home: Path) -> set[str]:
    """Return the peers that a stage has worked for, by its books."""
    (books,) = home.rglob("ledger*.sqlite3")
    with closing(sqlite3.connect(books)) as database:
        rows = database.execute("SELECT DISTINCT user FROM work WHERE side = 'served'")
        return {user for (user,) in rows}


def complete(url: str, model: str) -> dict[str, Any]:
    """Ask through the gateway's API; return what it says of the answer."""
    body = {"model": model, "prompt": "A tree is", "max_tokens": TOKENS, "temperature": 0}
    kind = {"content-type": "application/json"}
    with urlopen(Request(f"{url}/v1/completions", json.dumps(body).encode(), kind)) as reply:
        found: dict[str, Any] = json.load(reply)["choices"][0]["p2pinfer"]
    return found


@pytest.mark.parametrize("via", [1, 2])
def test_nobody_has_both_ends(
    internet: Internet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, via: int
) -> None:
    """No stage has the asker's address or lasting id; of two relays neither has all."""
    contacts = contacts_of(internet, monkeypatch)
    write_tiny(TINY["llama"], model := tmp_path / "tiny.gguf")
    homes = {name: tmp_path / name for name in (ASKER, *RELAYS, *STAGES)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("P2PINFER_HOME", str(homes[ASKER]))
        with hold_identity(None) as key:
            lasting = key.identity.peer_id.encode()
    with ExitStack() as stack:

        def start(host: Host, *words: str) -> Started:
            home = homes[host.address]
            home.mkdir(exist_ok=True)
            started = Started(host, home, "said", *words, level="debug")
            stack.callback(started.end)
            return started

        hosts = {name: internet.host(name, name, delay_ms=2) for name in homes}
        ids, bootstrap = dict[str, str](), list[str]()
        for name in RELAYS:
            listen = ("--listen", f"/ip4/{name}/tcp/4001")
            relay = start(hosts[name], "relay", "--json", *listen, *bootstrap).ready()
            ids[name] = relay["peer"]
            bootstrap += ["--bootstrap", relay["addresses"][0]]
        ends = ("--json", "--until-stdin-closes")
        join = ("join", *ends, "--model", str(model), *bootstrap, "--layers")
        stages = [
            start(hosts[name], *join, layers) for name, layers in zip(STAGES, LAYERS, strict=True)
        ]
        for name, each in zip(STAGES, stages, strict=True):
            ids[name] = each.ready()["peer"]
        way = ("--via", str(via), *bootstrap[:2], "--model", str(model), "--port", "8080")
        gateway = start(hosts[ASKER], "serve", *ends, *way)
        up = gateway.ready()
        said = hosts[ASKER].call(partial(complete, up["url"], up["model"])).result(START_S_MAX)
        for each in (gateway, *stages):  # the books are written at the end
            stop(each.process)
    assert said["tokens"] > 0
    assert [hop["peer"] for hop in said["route"]] == [ids[name] for name in STAGES]
    assert said["path"] == [ids[name] for name in RELAYS[:via]]
    assert {to for source, to in contacts if source == ASKER} == {RELAYS[0]}
    assert {source for source, to in contacts if to == ASKER} == {RELAYS[0]}
    address = ASKER.encode()
    (user,) = {each.encode() for name in STAGES for each in users_of(homes[name])}
    assert user != lasting
    found = {name: kept(home) for name, home in homes.items()}
    for name in (*RELAYS, *STAGES):
        assert lasting not in found[name]
    for name in (*STAGES, *RELAYS[1:]):
        assert address not in found[name]
    assert user in found[STAGES[0]]
    if via == 2:
        assert user not in found[RELAYS[0]]
