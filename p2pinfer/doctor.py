"""Why this machine is or is not serving, in plain words."""

import ipaddress
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import trio

from p2pinfer.core.advertisement import Advertisement, State
from p2pinfer.core.errors import P2pinferError
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.manifest import METADATA
from p2pinfer.engine.memory import budget_bytes, mib
from p2pinfer.engine.parts_model import PartsModel
from p2pinfer.engine.store import Store
from p2pinfer.identities import held_identities
from p2pinfer.join import least_bytes
from p2pinfer.look import Look, Row, holders
from p2pinfer.node import Machine
from p2pinfer.supply import obtain
from peers.layers import Layers, ranges

SKEW_S_MAX = 60.0
"""Clocks that differ by more are worth a word."""

MODEL_S_MAX = 10.0
"""For the description of a model to arrive."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    is_good: bool
    text: str

    def as_dict(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return asdict(self)


@dataclass(frozen=True)
class Patient:
    """What the doctor looks at: this machine, as a swarm's peer."""

    look: Look
    store: Store
    machine: Machine
    memory_bytes: int | None


async def examine(patient: Patient) -> list[Finding]:
    """Look at everything that may keep this machine from serving."""
    look = patient.look
    findings = [*_ways_in(look)]
    rows = await look.rows()
    said = [row.said for row in rows]
    mine = set(held_identities())
    findings += peer_findings(mine, rows)
    findings += clock_findings(said, time.time_ns() // 1_000_000)
    for model in dict.fromkeys(a.model for a in said):
        findings += coverage_findings([a for a in said if a.model == model], mine)
        findings += await _memory(patient, model)
    return findings


def _ways_in(look: Look) -> list[Finding]:
    found = [Finding("bootstrap", False, f"no answer: {failure}") for failure in look.failures]
    if not look.ways_in:
        text = "no way into a swarm is known: name a peer's address with --bootstrap"
        found.append(Finding("bootstrap", False, text))
    elif not look.is_connected:
        text = "no way in answers, so this machine sees nobody: check the address and the network"
        found.append(Finding("bootstrap", False, text))
    elif not found:
        found.append(Finding("bootstrap", True, "every way in answers"))
    return found


def peer_findings(mine: set[PeerId], rows: Sequence[Row]) -> list[Finding]:
    """Say what the peers that run here do, as the swarm sees them."""
    if not mine:
        text = "no peer runs on this machine: start one with p2pinfer join"
        return [Finding("peer", False, text)]
    found: list[Finding] = []
    known = {row.said.peer: row for row in rows}
    for peer in sorted(mine):
        row = known.get(peer)
        if row is None:
            text = f"…{peer[-6:]} runs here, and the swarm does not know it: has it a --bootstrap?"
            found.append(Finding("peer", False, text))
            continue
        a = row.said
        does = {
            State.JOINING: f"is joining, and means to serve layers {a.first}:{a.end}",
            State.SERVING: f"serves layers {a.first}:{a.end}",
            State.DRAINING: f"is leaving layers {a.first}:{a.end}",
            State.LEFT: "has left",
        }[a.state]
        found.append(Finding("peer", a.state is State.SERVING, f"…{peer[-6:]} {does}"))
        found += _port(row)
    return found


def _port(row: Row) -> list[Finding]:
    """Say whether others can call a peer of this machine."""
    name = f"…{row.said.peer[-6:]}"
    if row.reached is False:
        text = f"{name} cannot be called at any of its addresses: is a firewall closing its port?"
        return [Finding("port", False, text)]
    if not any(is_public(address) for address in row.said.addresses):
        text = f"{name} has only addresses of its own network: peers elsewhere cannot call it"
        return [Finding("port", True, text)]
    return []


def is_public(address: str) -> bool:
    """Whether a multiaddr can be called from anywhere; names are taken to be."""
    found = re.match(r"/ip[46]/([^/]+)", address)
    if not found:
        return True
    try:
        return ipaddress.ip_address(found[1]).is_global
    except ValueError:  # a peer may say anything
        return False


def clock_findings(said: Sequence[Advertisement], now_ms: int) -> list[Finding]:
    """Compare clocks: a sequence number is never ahead of its author's."""
    ahead_s = [(a.sequence - now_ms) / 1000 for a in said]
    late = [each for each in ahead_s if each > SKEW_S_MAX]
    if not late:
        return []
    text = f"{len(late)} of {len(said)} peers have clocks that are ahead of this machine's by"
    text += f" {max(late):,.0f} s or so: set the clock by the network"
    return [Finding("clock", False, text)]


def coverage_findings(said: Sequence[Advertisement], mine: set[PeerId]) -> list[Finding]:
    """Say which layers nobody serves, and which only one peer does."""
    name, layers, model = said[0].model_name, said[0].layers, said[0].model
    served = holders(said, model, layers)
    inner = range(1, layers - 1)
    missing = ranges([layer for layer in inner if not served[layer]])
    found = [
        Finding("layers", False, f"nobody serves {_words(each)} of {name}") for each in missing
    ]
    for peer in sorted({who[0] for who in served if len(who) == 1}):
        alone = ranges([layer for layer in inner if served[layer] == [peer]])
        who = "this machine's" if peer in mine else "peer"
        text = f"nobody but {who} …{peer[-6:]} holds {', '.join(map(_words, alone))} of {name}"
        found.append(Finding("layers", True, text))
    if not missing:
        found.append(Finding("layers", True, f"all layers of {name} are served"))
    return found


def _words(layers: Layers) -> str:
    first, end = layers
    return f"layer {first}" if end == first + 1 else f"layers {first} to {end - 1}"


async def _memory(patient: Patient, model: ModelId) -> list[Finding]:
    """Say whether a layer of a model fits."""
    look = patient.look
    try:
        with trio.fail_after(MODEL_S_MAX):
            opened, _ = await obtain(
                look.transport,
                look.directory,
                patient.store,
                model,
                lambda _: (METADATA,),
                lambda _: None,
                lambda _: None,
                look.chance,
            )
    except trio.TooSlowError:
        return [Finding("parts", False, f"nobody gives the description of model {model[:12]}…")]
    except P2pinferError as error:
        return [Finding("parts", False, str(error))]
    return [_fits(opened, patient.machine, budget_bytes(patient.memory_bytes))]


def _fits(model: PartsModel, machine: Machine, budget: int) -> Finding:
    least = least_bytes(model, machine)
    name = model.info.name
    if budget < least:
        text = f"a layer of {name} needs {mib(least)}, and {mib(budget)} may be used here"
        return Finding("memory", False, text + ": fewer --sessions or a smaller --context help")
    return Finding("memory", True, f"{mib(budget)} may be used here; a layer of {name} fits")
