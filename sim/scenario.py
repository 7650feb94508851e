"""What a scenario file may contain: the peers, the questions, and the faults."""

# ruff: noqa: RUF009 - what describes a field is one of attrs', of frozen values

import tomllib
from importlib.resources import files
from pathlib import Path

from attrs import evolve, frozen

from p2pinfer.core.errors import UserError
from sim.toml_schema import Spread, entry, read_table, table

PEERS_MAX = 5000
CHEATS = ("copies", "skips", "garbles")


@frozen(kw_only=True)
class ModelTable:
    """The model that all peers serve."""

    layers: int = entry("how many layers the model has", 30, 3, 1024)
    width: int = entry("numbers in a row of the residual stream; 4 bytes each on the wire", 576, 8)
    layer_mb: float = entry("megabytes of one layer's weights, fetched before it is served", 3.0)
    context: int = entry("positions that a session may have", 1024, 16, 1 << 20)
    keep: int = entry("layers at each end that requesters run themselves", 1, 1, 64)


@frozen(kw_only=True)
class PeersTable:
    """Peers of one kind."""

    count: int = entry("how many", 3, 1, PEERS_MAX)
    regions: tuple[str, ...] = entry("where they are, in turn; none: wherever requesters are", ())
    layers: Spread = entry("layers that a peer's memory holds with its sessions", Spread(10, 10), 1)
    serves: tuple[int, ...] = entry("the first layer and the end of a range; none: they choose", ())
    sessions: int = entry("sessions at once on a peer", 8, 1, 256)
    row_ms: Spread = entry("milliseconds a layer takes for one row", Spread(0.2, 0.2), 0.001)
    chunk_ms: Spread = entry(
        "milliseconds a layer takes for 32 rows, on one thread", Spread(3.0, 3.0), 0.001
    )
    threads: Spread = entry("engine threads, which share the work of many rows", Spread(1, 1), 1)
    numerics: int = entry("peers of different numbers compute the same but for rounding", 0, 0, 255)
    up_mbit: Spread = entry("megabits a second that a peer sends", Spread(100, 100), 0.01)
    down_mbit: Spread = entry("megabits a second that it receives", Spread(100, 100), 0.01)
    last_mile_ms: Spread = entry("one way, to its region's backbone", Spread(1, 1))
    jitter: float = entry("mean random addition to a delay, as a share of it", 0.1, 0, 10)
    loss: float = entry("share of packets lost, and sent again", 0.0, 0, 0.5)
    undialable: float = entry(
        "share that dial others and cannot be dialled: behind NAT, or a firewall", 0.0, 0, 1
    )
    join_s: Spread = entry("seconds after the start at which it joins", Spread(0, 5))


@frozen(kw_only=True)
class NatsTable:
    """What stands before the peers that cannot be dialled, and who relays for them.

    With these shares 72 of 100 pairs punch a hole, as 70 of 100 did in IPFS: arXiv 2510.27500.
    """

    open_filter: float = entry(
        "share of the NATs that let everybody in at an open port", 0.05, 0, 1
    )
    address_filter: float = entry("share that let in addresses that were spoken to", 0.15, 0, 1)
    symmetric: float = entry("share that take another outer port for each remote one", 0.2, 0, 1)
    relays: float = entry("share of the peers that can be dialled which relay", 1.0, 0, 1)
    relay_mbit: float = entry(
        "megabits a second that a relay carries, both ways together", 16.0, 0.01
    )


@frozen(kw_only=True)
class RegionsTable:
    """Distances."""

    names: tuple[str, ...] = entry("of the regions", ("here",))
    round_trip_ms: tuple[tuple[float, ...], ...] = entry(
        "milliseconds between the backbones of two regions, a row per region", ((0.2,),)
    )


@frozen(kw_only=True)
class RequestsTable:
    """The requesters and their questions."""

    requesters: int = entry("machines that ask; each keeps the model's ends", 2, 1, 1000)
    per_minute: float = entry("questions, at random moments, of all requesters together", 6.0)
    burst_at_s: tuple[float, ...] = entry("moments at which a crowd asks at once", ())
    burst: int = entry("questions in such a crowd, beyond those at random", 0)
    prompt: Spread = entry("tokens of a question", Spread(30, 200), 1)
    answer: Spread = entry("tokens of an answer", Spread(20, 80), 1)
    attempts: int = entry("how often a question is tried until an answer comes", 4, 1, 20)
    patience_s: float = entry("seconds in which it is asked again where peers have no room", 60.0)
    audit_rate: float = entry("share of stages whose work is run again by others", 0.05, 0, 1)
    proof_rate: float = entry("share of stages that open rows to be checked", 0.0, 0, 1)
    row_ms: float = entry("milliseconds a layer takes a requester for one row", 0.2, 0.001)
    chunk_ms: float = entry("and for 32 rows", 3.0, 0.001)
    agreement: Spread = entry(
        "share of its tokens that a requester's draft model gets right, drawn for each session;"
        " 0: nobody drafts",
        Spread(0, 0),
        0,
    )
    draft_ms: float = entry("milliseconds that the draft model takes for a token", 2.0, 0.001)

    @property
    def drafts(self) -> bool:
        """Whether requesters have a draft model."""
        return _most(self.agreement) > 0


@frozen(kw_only=True)
class ChurnTable:
    """Peers that come and go."""

    stay_s: float = entry("mean seconds a peer stays; 0: until the end", 0.0)
    away_s: float = entry("mean seconds until another peer comes in its place", 30.0, 1)
    killed: float = entry("share that vanish without notice; the others leave properly", 0.5, 0, 1)
    from_s: float = entry("when it begins, in seconds after the first question may come", 0.0)
    until_s: float = entry("when it ends; 0: with the questions", 0.0)
    relays_per_minute: float = entry("busiest relays that vanish without notice", 0.0, 0, 60)


@frozen(kw_only=True)
class CutTable:
    """Regions that are cut off from the others for a while."""

    regions: tuple[str, ...] = entry("those on one side; all others are on the other")
    at_s: float = entry("when, in seconds after the first question may come")
    heal_s: float = entry("when the cut ends")


@frozen(kw_only=True)
class LiarsTable:
    """Peers whose rows are not what their layers give."""

    kind: str = entry(f"one of {', '.join(CHEATS)}", "skips")
    share: float = entry("of all peers", 0.1, 0, 1)
    rate: float = entry("share of their decodes in which they lie", 1.0, 0, 1)


@frozen(kw_only=True)
class ExpectTable:
    """Required results, else the run has failed."""

    answered: float = entry("least share of questions that are answered to the end", 0.0, 0, 1)
    covered: float = entry("least share of time in which every layer is served", 0.0, 0, 1)
    undialable: float = entry(
        "least share of the layer-rows that peers compute which cannot be dialled", 0.0, 0, 1
    )


@frozen(kw_only=True)
class Scenario:
    """A network, its work and its faults."""

    about: str = entry("one sentence")
    duration_s: float = entry("virtual seconds in which questions are asked", 120.0, 1, 86_400)
    settle_s: float = entry("virtual seconds before the first question", 40.0)
    calm_s: float = entry("virtual seconds without faults before the last questions", 60.0)
    seed: int = entry("random seed for everything", 1)
    cores: float = entry("that all engines share, as on one machine; 0: each has its own", 0.0)
    handling_ms: float = entry(
        "of a core, for a session's rows at each machine besides its layers: to receive, check and "
        "send them",
        0.0,
    )
    aside_ms: float = entry("of a core, for a session's rows at a peer after sending them", 0.0)
    model: ModelTable = table("the model that all peers serve", ModelTable())
    nats: NatsTable = table("NATs and relays", NatsTable())
    regions: RegionsTable = table("distances", RegionsTable())
    peers: tuple[PeersTable, ...] = table("peers of one kind; several kinds may be there")
    requests: RequestsTable = table("the requesters and their questions", RequestsTable())
    churn: ChurnTable = table("peers that come and go", ChurnTable())
    cuts: tuple[CutTable, ...] = table("regions that are cut off for a while", ())
    liars: tuple[LiarsTable, ...] = table("peers that lie", ())
    expect: ExpectTable = table("required results, else the run has failed", ExpectTable())

    @property
    def peer_count(self) -> int:
        """How many peers."""
        return sum(group.count for group in self.peers)


def shipped() -> dict[str, Path]:
    """Return the scenarios that come with the package, by name."""
    folder = Path(str(files("sim") / "scenarios"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_scenario(name: str) -> Scenario:
    """Read a scenario by its file or by a shipped one's name; raises UserError."""
    known = shipped()
    path = Path(name)
    if not path.is_file():
        if path.stem not in known:
            raise UserError(f"there is no scenario {name}: name a file or {', '.join(known)}")
        path = known[path.stem]
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path.name} is not TOML: {error}") from None
    return check_scenario(read_table(Scenario, values, path.name), path.name)


def check_scenario(scenario: Scenario, where: str) -> Scenario:
    """Return a scenario whose tables fit together; raises UserError."""
    names, matrix = scenario.regions.names, scenario.regions.round_trip_ms
    if len(matrix) != len(names) or any(len(row) != len(names) for row in matrix):
        raise UserError(f"{where}: regions.round_trip_ms must be {len(names)} rows of as many")
    if any(matrix[i][j] != matrix[j][i] for i in range(len(names)) for j in range(i)):
        raise UserError(f"{where}: regions.round_trip_ms must be the same both ways")
    used = [*(group.regions for group in scenario.peers), *(cut.regions for cut in scenario.cuts)]
    for name in {name for each in used for name in each}:
        if name not in names:
            raise UserError(f"{where}: there is no region {name}; regions.names has the others")
    if not scenario.peers or scenario.peer_count > PEERS_MAX:
        raise UserError(f"{where}: there must be from 1 to {PEERS_MAX} peers")
    if scenario.model.layers <= 2 * scenario.model.keep:
        raise UserError(f"{where}: model.keep leaves no layers for the peers")
    for group in scenario.peers:
        if group.serves and not _is_range(group.serves, scenario.model):
            raise UserError(f"{where}: peers.serves must be two layers within the model, or none")
    for cut in scenario.cuts:
        if not cut.at_s < cut.heal_s <= scenario.duration_s:
            raise UserError(f"{where}: a cut must heal after it began and before the end")
    nats = scenario.nats
    if nats.open_filter + nats.address_filter + nats.symmetric > 1:
        text = "nats.open_filter, address_filter and symmetric are shares of one whole"
        raise UserError(f"{where}: {text}")
    if any(liars.kind not in CHEATS for liars in scenario.liars):
        raise UserError(f"{where}: liars.kind must be one of {', '.join(CHEATS)}")
    requests = scenario.requests
    if _most(requests.agreement) > 1:
        raise UserError(f"{where}: requests.agreement is a share, from 0 to 1")
    longest = max(_most(requests.prompt), 1) + max(_most(requests.answer), 1)
    if longest > scenario.model.context:
        text = f"questions and answers may have {longest:.0f} tokens together, and model.context"
        raise UserError(f"{where}: {text} is {scenario.model.context}")
    return scenario


def _is_range(serves: tuple[int, ...], model: ModelTable) -> bool:
    return len(serves) == 2 and model.keep <= serves[0] < serves[1] <= model.layers - model.keep


def _most(spread: Spread) -> float:
    """Return an upper bound for a spread: lognormal ones are cut off there."""
    return spread.high if spread.median is None else 4 * spread.median


def shorten(scenario: Scenario, duration_s: float, peers_max: int) -> Scenario:
    """Return a scenario of the same kind that is done sooner, for tests."""
    factor = min(1.0, duration_s / scenario.duration_s)
    smaller = min(1.0, peers_max / scenario.peer_count)
    requests = evolve(
        scenario.requests,
        burst_at_s=tuple(at * factor for at in scenario.requests.burst_at_s),
        burst=int(scenario.requests.burst * smaller),
        requesters=max(1, int(scenario.requests.requesters * smaller)),
        per_minute=scenario.requests.per_minute * max(smaller, 0.2),
    )
    churn = evolve(
        scenario.churn,
        from_s=scenario.churn.from_s * factor,
        until_s=scenario.churn.until_s * factor,
    )
    return evolve(
        scenario,
        duration_s=scenario.duration_s * factor,
        expect=ExpectTable(),  # of the whole one
        requests=requests,
        churn=churn,
        cuts=tuple(
            evolve(cut, at_s=cut.at_s * factor, heal_s=cut.heal_s * factor) for cut in scenario.cuts
        ),
        peers=tuple(
            evolve(group, count=max(1, round(group.count * smaller))) for group in scenario.peers
        ),
    )
