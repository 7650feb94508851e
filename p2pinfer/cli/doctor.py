"""Why this machine is or is not serving, in plain words."""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import trio

from p2pinfer.core.advertisement import Advertisement, State
from p2pinfer.core.errors import P2pinferError
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.manifest import METADATA
from p2pinfer.core.model_names import readable_name
from p2pinfer.core.ways import is_behind_relays
from p2pinfer.engine.gpu import HOW_TO_GET, Gpu, Search
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
from p2pinfer.node.memory_plan import least_bytes
from p2pinfer.node.model_supply import obtain
from p2pinfer.node.observer import ObservedPeer, Observer, holders
from p2pinfer.node.requester import Machine

SKEW_S_MAX = 60.0
"""Clocks that differ by more are reported."""

MODEL_S_MAX = 10.0
"""For a model's metadata to arrive."""


OPEN_PORT = "open its port in the firewall or router"


@dataclass(frozen=True)
class Diagnosis:
    """The result of one check."""

    what: str
    is_good: bool
    text: str

    def as_dict(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return asdict(self)


@dataclass(frozen=True)
class Patient:
    """What is examined: this machine, as a peer of a swarm."""

    look: Observer
    here: Sequence[Here]
    """The network's peers that run on this machine."""
    store: Store
    machine: Machine
    memory_bytes: int | None
    slices: Path
    """The folder of its slices, which may be in subfolders."""
    gpus: Search = field(default_factory=Search)
    backends: tuple[str, ...] = ()
    """The kinds of GPUs that its llama.cpp was compiled for."""


async def examine(patient: Patient) -> list[Diagnosis]:
    """Check everything that may keep this machine from serving."""
    look = patient.look
    findings = [*_ways_in(look)]
    rows = await look.rows()
    said = [row.said for row in rows]
    mine = {each.peer: each.advice for each in patient.here}
    findings += [*peer_findings(mine, rows), *router_findings(patient.here)]
    findings += clock_findings([row for row in rows if row.said.peer not in mine])
    for model in dict.fromkeys(a.model for a in said):
        findings += coverage_findings([a for a in said if a.model == model], {*mine})
        findings += await _memory(patient, model)
    findings += gpu_findings(patient.gpus, patient.backends, patient.machine.gpu)
    return findings + probe_findings(await trio.to_thread.run_sync(probe_reports, patient.slices))


def _ways_in(look: Observer) -> list[Diagnosis]:
    found = [Diagnosis("bootstrap", False, f"no answer: {failure}") for failure in look.failures]
    if not (look.ways_in or look.is_connected):
        text = (
            "no swarm is known: take an invitation, which p2pinfer invite prints on a machine that"
            " is in it, or give a peer's address with --bootstrap"
        )
        found.append(Diagnosis("bootstrap", False, text))
    elif not look.is_connected:
        text = "none of the known peers answers: check the address and the network"
        found.append(Diagnosis("bootstrap", False, text))
    elif not found:
        text = "every known address answers" if look.ways_in else "peers answer without an address"
        found.append(Diagnosis("bootstrap", True, text))
    return found


def peer_findings(mine: Mapping[PeerId, str], rows: Sequence[ObservedPeer]) -> list[Diagnosis]:
    """Report what the peers on this machine do, as the swarm sees them.

    ``mine`` gives for each what would let others reach it better, in its own words.
    """
    if not mine:
        text = "no peer of this network runs on this machine: start one with p2pinfer join"
        return [Diagnosis("peer", False, text)]
    found: list[Diagnosis] = []
    known = {row.said.peer: row for row in rows}
    for peer in sorted(mine):
        row = known.get(peer)
        if row is None:
            text = (
                f"…{peer[-6:]} runs here, but the swarm does not know it: was it given an address?"
            )
            found.append(Diagnosis("peer", False, text))
            continue
        a = row.said
        does = {
            State.JOINING: f"is joining, and plans to serve layers {a.first}:{a.end}",
            State.SERVING: f"serves layers {a.first}:{a.end}",
            State.DRAINING: (
                f"is leaving layers {a.first}:{a.end}" if a.first < a.end else "keeps shares of it"
            ),
            State.LEFT: "has left",
        }[a.state]
        is_good = a.state is State.SERVING or (a.state is State.DRAINING and a.first == a.end)
        found.append(Diagnosis("peer", is_good, f"…{peer[-6:]} {does}"))
        found += _port(row, mine[peer])
    return found


def _port(row: ObservedPeer, advice: str) -> list[Diagnosis]:
    """Report whether others can dial a peer of this machine."""
    name = f"…{row.said.peer[-6:]}"
    if not row.said.addresses:
        text = f"other peers cannot dial {name}, and none of them relays for it: "
        return [Diagnosis("port", False, text + (advice or OPEN_PORT))]
    if is_behind_relays(row.said.addresses):
        text = (
            f"{name} sits behind a NAT or firewall, and is called {row.way or 'through relays'}: "
        )
        text += advice or f"to be dialled without a relay, {OPEN_PORT}"
        return [Diagnosis("port", row.reached is not False, text)]
    if row.reached is False:
        text = f"{name} cannot be dialled at any of its addresses: does a firewall block its port?"
        return [Diagnosis("port", False, text)]
    if not any(is_public(address) for address in row.said.addresses):
        text = f"{name} has only local-network addresses: peers elsewhere cannot dial it"
        return [Diagnosis("port", True, text)]
    return []


def router_findings(here: Sequence[Here]) -> list[Diagnosis]:
    """Report what the router was asked for by the peers on this machine, and what it said."""
    return [
        Diagnosis("router", True, f"…{each.peer[-6:]}: {each.port_mapping}")
        for each in here
        if each.port_mapping
    ]


def is_public(address: str) -> bool:
    """Whether a multiaddr can be dialled from anywhere; names are assumed to be."""
    found = re.match(r"/ip[46]/([^/]+)", address)
    if not found:
        return True
    try:
        return ipaddress.ip_address(found[1]).is_global
    except ValueError:  # a peer may advertise anything
        return False


def clock_findings(others: Sequence[ObservedPeer]) -> list[Diagnosis]:
    """Compare clocks with other machines: peers that take turns must agree on the minute."""
    apart_s = sorted(row.clock_ahead_s for row in others if abs(row.clock_ahead_s) > SKEW_S_MAX)
    if not apart_s:
        return []
    middle_s = apart_s[len(apart_s) // 2]
    which = "ahead of" if middle_s > 0 else "behind"
    text = f"the clocks of {len(apart_s)} of {len(others)} other peers are {which} this machine's"
    text += f" by about {abs(middle_s):,.0f} s: set "
    is_mine = 2 * len(apart_s) > len(others)
    whose = "this machine's clock, or theirs," if is_mine else "theirs"
    return [Diagnosis("clock", not is_mine, f"{text}{whose} from the network (NTP)")]


def coverage_findings(said: Sequence[Advertisement], mine: set[PeerId]) -> list[Diagnosis]:
    """Report which layers no peer serves, and which only one peer serves."""
    name, layers, model = readable_name(said[0].model_name), said[0].layers, said[0].model
    served = holders([a for a in said if a.addresses], model, layers)
    keep = 0 if served[0] else 1  # where anybody serves the first layer, requesters keep none
    inner = range(keep, layers - keep)
    missing = LayerRange.joined(layer for layer in inner if not served[layer])
    found = [
        Diagnosis(
            "layers",
            False,
            f"no peer serves {_words(each)} of {name}: start another peer, or allow more --memory",
        )
        for each in missing
    ]
    for peer in sorted({who[0] for who in served if len(who) == 1}):
        alone = LayerRange.joined(layer for layer in inner if served[layer] == [peer])
        owner = "this machine's peer" if peer in mine else "peer"
        text = f"only {owner} …{peer[-6:]} serves {', '.join(map(_words, alone))} of {name}"
        found.append(Diagnosis("layers", True, text))
    if not missing:
        found.append(Diagnosis("layers", True, f"all layers of {name} are served"))
    return found


def _words(layers: LayerRange) -> str:
    both_ends = f" ({layers.first} to {layers.end - 1})" if len(layers) > 1 else ""
    return f"layers {layers}{both_ends}"


def probe_findings(reports: Sequence[ProbeReport]) -> list[Diagnosis]:
    """Report how slices are computed here, which settings were ruled out, and why."""
    if not reports:
        return []
    build, cpu = reports[0].build, reports[0].cpu
    version, compiled, *_ = build.split()
    text = f"llama.cpp {version}, build {compiled}, uses {' '.join(used_features(build))} of this"
    found = [Diagnosis("build", True, f"{text} CPU's {' '.join(vector_features(cpu)) or cpu}")]
    for report in reports:
        text = f"{report.slice_name} runs with {report.used}"
        text += "".join(f"; not with {settings}: {why}" for settings, why in report.ruled_out)
        found.append(Diagnosis("probe", True, text))
    return found


def gpu_findings(search: Search, backends: Sequence[str], used: Gpu | None) -> list[Diagnosis]:
    """Report which GPUs were found, and why each is or is not used.

    Args:
        search: what was found.
        backends: the kinds of GPUs that llama.cpp was compiled for.
        used: the GPU that ``--gpu`` chooses.
    """
    if search.problem:
        return [Diagnosis("gpu", False, f"no GPU is used: {search.problem}")]
    if not backends:
        text = f"no GPU is used: llama.cpp was compiled for CPUs alone; {HOW_TO_GET}"
        return [Diagnosis("gpu", True, text)]
    if not search.gpus:
        kinds = " and ".join(backends)
        text = f"no GPU is used: llama.cpp was compiled for {kinds}, and finds none: is a driver"
        return [Diagnosis("gpu", True, f"{text} for it installed?")]
    return [_gpu_finding(each, used) for each in search.gpus]


def _gpu_finding(gpu: Gpu, used: Gpu | None) -> Diagnosis:
    text = f"{gpu}, {mib(gpu.free_bytes)} of {mib(gpu.total_bytes)} free, driver {gpu.driver},"
    if used and gpu.name == used.name:
        text += " is used for layers that it computes exactly"
        text += "" if gpu.is_named or used.is_named else ", where it is faster than the CPU"
        return Diagnosis("gpu", True, text)
    why = gpu.why_not or (f"{used.name} is" if used else "--gpu says off")
    advice = f"; to use it all the same: --gpu {gpu.name}" if gpu.why_not else ""
    return Diagnosis("gpu", True, f"{text} is not used: {why}{advice}")


async def _memory(patient: Patient, model: ModelId) -> list[Diagnosis]:
    """Report whether a layer of a model fits."""
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
        return [Diagnosis("parts", False, f"no peer sends the metadata of model {model[:12]}…")]
    except P2pinferError as error:
        return [Diagnosis("parts", False, str(error))]
    return [_fits(opened, patient.machine, budget_bytes(patient.memory_bytes, patient.machine.gpu))]


def _fits(model: PartsModel, machine: Machine, budget: int) -> Diagnosis:
    least = least_bytes(model, machine)
    name = model.info.name
    if budget < least:
        text = f"a layer of {name} needs {mib(least)}, but only {mib(budget)} may be used here"
        return Diagnosis("memory", False, text + ": lower --sessions or --context")
    return Diagnosis("memory", True, f"{mib(budget)} may be used here; a layer of {name} fits")
