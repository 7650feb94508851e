"""Why this machine is or is not serving, in plain words."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import trio

from p2pinfer.core.advertisement import Advertisement, State
from p2pinfer.core.errors import P2pinferError
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.manifest import METADATA
from p2pinfer.core.model_names import readable_name
from p2pinfer.engine.llama.memory import budget_bytes, mib
from p2pinfer.engine.llama.probe_reports import (
    ProbeReport,
    probe_reports,
    used_features,
    vector_features,
)
from p2pinfer.engine.store.assemble import PartsModel
from p2pinfer.engine.store.store import Store
from p2pinfer.node.local_peers import Here
from p2pinfer.node.model_supply import obtain
from p2pinfer.node.observer import ObservedPeer, Observer, holders
from p2pinfer.node.peer import least_bytes
from p2pinfer.node.requester import Machine

SKEW_S_MAX = 60.0
"""Clocks that differ by more are worth a word."""

MODEL_S_MAX = 10.0
"""For the description of a model to arrive."""


@dataclass(frozen=True)
class Diagnosis:
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

    look: Observer
    here: Sequence[Here]
    """The network's peers that run on it."""
    store: Store
    machine: Machine
    memory_bytes: int | None
    slices: Path
    """The folder that they lie in, or below."""


async def examine(patient: Patient) -> list[Diagnosis]:
    """Look at everything that may keep this machine from serving."""
    look = patient.look
    findings = [*_ways_in(look)]
    rows = await look.rows()
    said = [row.said for row in rows]
    mine = {each.peer for each in patient.here}
    findings += peer_findings(mine, rows)
    findings += clock_findings([row for row in rows if row.said.peer not in mine])
    for model in dict.fromkeys(a.model for a in said):
        findings += coverage_findings([a for a in said if a.model == model], mine)
        findings += await _memory(patient, model)
    return findings + probe_findings(await trio.to_thread.run_sync(probe_reports, patient.slices))


def _ways_in(look: Observer) -> list[Diagnosis]:
    found = [Diagnosis("bootstrap", False, f"no answer: {failure}") for failure in look.failures]
    if not (look.ways_in or look.is_connected):
        text = "no way into a swarm is known: name a peer's address with --bootstrap, or try --mdns"
        found.append(Diagnosis("bootstrap", False, text))
    elif not look.is_connected:
        text = "no way in answers, so this machine sees nobody: check the address and the network"
        found.append(Diagnosis("bootstrap", False, text))
    elif not found:
        text = "every way in answers" if look.ways_in else "peers answer without an address"
        found.append(Diagnosis("bootstrap", True, text))
    return found


def peer_findings(mine: set[PeerId], rows: Sequence[ObservedPeer]) -> list[Diagnosis]:
    """Say what the peers that run here do, as the swarm sees them."""
    if not mine:
        text = "no peer runs on this machine: start one with p2pinfer join"
        return [Diagnosis("peer", False, text)]
    found: list[Diagnosis] = []
    known = {row.said.peer: row for row in rows}
    for peer in sorted(mine):
        row = known.get(peer)
        if row is None:
            text = f"…{peer[-6:]} runs here, and the swarm does not know it yet: has it a way in?"
            found.append(Diagnosis("peer", False, text))
            continue
        a = row.said
        does = {
            State.JOINING: f"is joining, and means to serve layers {a.first}:{a.end}",
            State.SERVING: f"serves layers {a.first}:{a.end}",
            State.DRAINING: f"is leaving layers {a.first}:{a.end}",
            State.LEFT: "has left",
        }[a.state]
        found.append(Diagnosis("peer", a.state is State.SERVING, f"…{peer[-6:]} {does}"))
        found += _port(row)
    return found


def _port(row: ObservedPeer) -> list[Diagnosis]:
    """Say whether others can call a peer of this machine."""
    name = f"…{row.said.peer[-6:]}"
    if not row.said.addresses:
        text = f"nobody who tried could dial {name}: open its port, in the firewall or the router"
        return [Diagnosis("port", False, text)]
    if row.reached is False:
        text = f"{name} cannot be called at any of its addresses: is a firewall closing its port?"
        return [Diagnosis("port", False, text)]
    if not any(is_public(address) for address in row.said.addresses):
        text = f"{name} has only addresses of its own network: peers elsewhere cannot call it"
        return [Diagnosis("port", True, text)]
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


def clock_findings(others: Sequence[ObservedPeer]) -> list[Diagnosis]:
    """Compare clocks with other machines': where peers take turns, they must mean one minute."""
    apart_s = sorted(row.clock_ahead_s for row in others if abs(row.clock_ahead_s) > SKEW_S_MAX)
    if not apart_s:
        return []
    middle_s = apart_s[len(apart_s) // 2]
    which = "ahead of" if middle_s > 0 else "behind"
    text = f"the clocks of {len(apart_s)} of {len(others)} other peers are {which} this machine's"
    text += f" by {abs(middle_s):,.0f} s or so: set "
    is_mine = 2 * len(apart_s) > len(others)
    whose = "this machine's clock, or theirs," if is_mine else "theirs"
    return [Diagnosis("clock", not is_mine, f"{text}{whose} by the network")]


def coverage_findings(said: Sequence[Advertisement], mine: set[PeerId]) -> list[Diagnosis]:
    """Say which layers nobody serves, and which only one peer does."""
    name, layers, model = readable_name(said[0].model_name), said[0].layers, said[0].model
    served = holders([a for a in said if a.addresses], model, layers)
    inner = range(1, layers - 1)
    missing = LayerRange.joined(layer for layer in inner if not served[layer])
    found = [
        Diagnosis(
            "layers",
            False,
            f"nobody serves {_words(each)} of {name}: one more peer, or more --memory, is needed",
        )
        for each in missing
    ]
    for peer in sorted({who[0] for who in served if len(who) == 1}):
        alone = LayerRange.joined(layer for layer in inner if served[layer] == [peer])
        who = "this machine's" if peer in mine else "peer"
        text = f"nobody but {who} …{peer[-6:]} holds {', '.join(map(_words, alone))} of {name}"
        found.append(Diagnosis("layers", True, text))
    if not missing:
        found.append(Diagnosis("layers", True, f"all layers of {name} are served"))
    return found


def _words(layers: LayerRange) -> str:
    many = f" ({layers.first} to {layers.end - 1})" if len(layers) > 1 else ""
    return f"layers {layers}{many}"


def probe_findings(reports: Sequence[ProbeReport]) -> list[Diagnosis]:
    """Say how slices are computed here, which settings were ruled out, and why."""
    if not reports:
        return []
    build, cpu = reports[0].build, reports[0].cpu
    version, compiled, *_ = build.split()
    text = f"llama.cpp {version}, build {compiled}, uses {' '.join(used_features(build))} of this"
    found = [Diagnosis("build", True, f"{text} CPU's {' '.join(vector_features(cpu)) or cpu}")]
    for report in reports:
        text = f"{report.slice_name} is computed with {report.used}"
        text += "".join(f"; not with {settings}: {why}" for settings, why in report.ruled_out)
        found.append(Diagnosis("probe", True, text))
    return found


async def _memory(patient: Patient, model: ModelId) -> list[Diagnosis]:
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
        return [Diagnosis("parts", False, f"nobody gives the description of model {model[:12]}…")]
    except P2pinferError as error:
        return [Diagnosis("parts", False, str(error))]
    return [_fits(opened, patient.machine, budget_bytes(patient.memory_bytes))]


def _fits(model: PartsModel, machine: Machine, budget: int) -> Diagnosis:
    least = least_bytes(model, machine)
    name = model.info.name
    if budget < least:
        text = f"a layer of {name} needs {mib(least)}, and {mib(budget)} may be used here"
        return Diagnosis("memory", False, text + ": fewer --sessions or a smaller --context help")
    return Diagnosis("memory", True, f"{mib(budget)} may be used here; a layer of {name} fits")
