"""Options that several commands share, and their checks."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from p2pinfer import logs
from p2pinfer.cli.sizes import check_range, parse_bytes
from p2pinfer.core.errors import UserError
from p2pinfer.logs import Format, Level

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it
    from collections.abc import Sequence

    from p2pinfer.node.invitation import Invitation
    from transports.base import Reach

INVITED = "P2PINFER:"
"""How an invitation begins; what reads the rest is loaded by the commands that need it."""

OPTIONS = Group("Options", sort_key=10)
ANSWERS = Group("Answers", sort_key=11)
PRIVACY = Group("Checks and privacy", sort_key=12)
SWARM = Group("Swarm", sort_key=13)
USE = Group("This machine", sort_key=14)
LOGGING = Group("Log", sort_key=15)
"""Where --help lists options, below those of the command alone."""


def option(name: str, text: str, **more: Any) -> Any:
    """Describe an option that can also be set in the environment."""
    variable = f"P2PINFER_{name.upper().replace('-', '_')}"
    return Parameter(
        name=f"--{name}",
        help=text,
        env_var=variable,
        negative_iterable="",  # no --empty-bootstrap
        show_env_var=False,  # the foot of --help says how all of them are called
        show_default=_worth_showing,
        **more,
    )


def size_option(name: str, text: str) -> Any:
    """Describe an option that is a size; a wrong one is refused before the command begins."""
    return option(name, text, group=USE, validator=lambda _, value: parse_bytes(name, value))


def _worth_showing(default: Any) -> Any:
    if default is True:
        return "on"
    return None if default is False or default == () else default


Model = Annotated[
    str,
    option("model", "GGUF file, hf:owner/repo[:QUANT], or 'default' (SmolLM2-135M-Instruct)."),
]
SwarmModel = Annotated[
    str | None,
    option(
        "model",
        "GGUF file, hf:owner/repo[:QUANT], model id, or 'default'. If omitted: the model that the"
        " swarm serves, or else 'default'.",
    ),
]
Network = Annotated[
    str, option("network", "Swarm name; peers of other swarms are ignored.", group=SWARM)
]
NetworkKey = Annotated[
    Path | None,
    option(
        "network-key",
        "File with a private network's key, or of a network of founders (see: p2pinfer network).",
        group=SWARM,
    ),
]


@Parameter(name="*")
@dataclass(frozen=True)
class ReachFlags:
    """How to reach a swarm."""

    network_key: NetworkKey = None
    mdns: Annotated[
        bool | None,
        option(
            "mdns",
            "Find peers on the local network (by mDNS), without an address. If omitted: yes, unless"
            " all addresses that are named are of this machine alone.",
            group=SWARM,
        ),
    ] = None
    dht: Annotated[
        bool | None,
        option(
            "dht",
            "Also find a model's peers in a distributed hash table. If omitted: as for --mdns.",
            group=SWARM,
        ),
    ] = None
    invitation: Annotated[
        str | None,
        option(
            "invitation",
            "Invitation into a swarm, as p2pinfer invite prints it; it may also be typed without"
            " the option's name.",
            group=SWARM,
        ),
    ] = None

    def of(self, network: str, named: "Sequence[str]" = ()) -> "Reach":
        """Return these flags as a Reach.

        Args:
            network: the swarm's name.
            named: the addresses that this machine listens on, and those through which it enters.

        Raises:
            UserError: the flags cannot be used.
        """
        from p2pinfer.node.swarm_connection import reach_of, read_key

        key, members = None, None
        if self.network_key:
            network, key, members = read_key(self.network_key, network)
        if invited := self.invited():
            network, key = _network_of(invited, network, key)
        return reach_of(network, key, self.mdns, self.dht, named, members)

    @property
    def says_where(self) -> bool:
        """Whether a person has said how to find a swarm, or which."""
        return any((self.network_key, self.mdns, self.dht, self.invitation))

    def invited(self) -> "Invitation | None":
        """Return the invitation, if there is one, with the key that it has, or brings.

        Raises:
            UserError: it cannot be used, or was used already.
            NobodyServes: who made it does not answer.
        """
        if self.invitation is None:
            return None
        from p2pinfer.node.invitation import read_link

        invited = read_link(self.invitation)
        if invited.token is None:
            return invited
        import trio

        from p2pinfer.node.guest_tokens import enter_as_guest

        return trio.run(enter_as_guest, invited)

    def got_key_file(self) -> Path | None:
        """Return where the key is that a single-use invitation has brought."""
        from p2pinfer.node.guest_tokens import key_file
        from p2pinfer.node.invitation import read_link

        token = read_link(self.invitation).token if self.invitation else None
        return key_file(token) if token else None

    def ways_in(self, bootstrap: "Sequence[str]") -> tuple[str, ...]:
        """Return the addresses through which to enter: the named ones, and the invitation's.

        Raises:
            UserError: a file of addresses, or the invitation, cannot be used.
        """
        from p2pinfer.cli.address_files import without_files

        invited = self.invited()
        return (*without_files(bootstrap), *(invited.addresses if invited else ()))

    def model(self, named: str | None) -> str | None:
        """Return the model that a person named, or else the one that the invitation is about."""
        invited = self.invited()
        return named or (invited.model if invited else None)


def _network_of(invited: "Invitation", network: str, key: bytes | None) -> tuple[str, bytes | None]:
    """Return an invitation's network and key; raises UserError if a person names others."""
    if network not in ("main", invited.network):
        raise UserError(
            f"the invitation is into the network {invited.network}, and --network says {network}:"
            " omit one of them"
        )
    if key and key != invited.key:
        raise UserError("the invitation has another key than --network-key: omit one of them")
    return invited.network, invited.key


Bootstrap = Annotated[
    tuple[str, ...],
    option(
        "bootstrap",
        "Addresses of one or more peers already in the swarm, /dnsaddr/ names, or @FILE with one a"
        " line. If omitted: of those that answered before.",
        group=SWARM,
    ),
]
Via = Annotated[
    int,
    option(
        "via",
        "Ask through 1 or 2 relays, so that no stage learns this machine's address or a lasting id;"
        " with 2 also no relay learns both who asks and which peers. Slower by a detour.",
        group=PRIVACY,
    ),
]
Pace = Annotated[
    int,
    option(
        "pace",
        "With --via: while an answer runs, milliseconds from one row to the next, empty ones among"
        " them, so that the line does not show when tokens are made. 0: as they are made.",
        group=PRIVACY,
    ),
]
WaysIn = Annotated[
    tuple[str, ...],
    option(
        "bootstrap",
        "Addresses of one or more peers already in the swarm, /dnsaddr/ names, or @FILE with one a"
        " line. If omitted: the peers that run on this machine, or those that answered it before.",
        group=SWARM,
    ),
]
MapPort = Annotated[
    bool,
    option(
        "map",
        "Ask the router to forward a port to this peer (PCP, NAT-PMP or UPnP), and undo that at the"
        " end. Not done with --announce.",
        group=SWARM,
    ),
]
RelayMbit = Annotated[
    float,
    option("relay-mbit", "Carry at most this much for others, in megabits a second.", group=SWARM),
]


@Parameter(name="*")
@dataclass(frozen=True)
class RelayFlags:
    """How others reach this machine, and what it carries for those that cannot be reached."""

    relay: Annotated[
        bool,
        option(
            "relay",
            "Carry bytes between peers behind routers, while others can dial this one.",
            group=SWARM,
        ),
    ] = True
    relay_mbit: RelayMbit = 16.0
    map_port: MapPort = True

    def of(self, reach: "Reach") -> "Reach":
        """Return how to reach a swarm, with these flags; raises UserError."""
        from transports.base import Relaying

        check_range("relay-mbit", self.relay_mbit, 0.1)
        relaying = Relaying.IF_PUBLIC if self.relay else Relaying.NEVER
        return replace(
            reach, relaying=relaying, relay_mbit=self.relay_mbit, maps_port=self.map_port
        )


Memory = Annotated[
    str | None,
    size_option(
        "memory",
        "Memory for weights and sessions, such as 2GiB. If omitted: half of what is free.",
    ),
]
AsJson = Annotated[bool, option("json", "Print JSON on standard output, on one line.", negative="")]
Quota = Annotated[
    str | None,
    size_option(
        "quota",
        "Disk space that all models on this machine may take together, such as 20GB. If omitted:"
        " no limit.",
    ),
]
Listen = Annotated[
    tuple[str, ...],
    option(
        "listen",
        "Multiaddrs to listen on; else all interfaces, at a port that is drawn once and kept.",
        consume_multiple=True,
        group=SWARM,
    ),
]
Announce = Annotated[
    tuple[str, ...],
    option(
        "announce",
        "Addresses at which others reach this machine, told before its own, such as those of a"
        " router that forwards a port, a cloud, or a container's host.",
        consume_multiple=True,
        group=SWARM,
    ),
]
Identity = Annotated[
    Path | None,
    option("identity", "File with this peer's key; created if it does not exist.", group=SWARM),
]
Peers = Annotated[int, option("peers", "Number of local peers that share the layers.")]


@Parameter(name="*")
@dataclass(frozen=True)
class LogFlags:
    """What is logged, how, and where."""

    log_level: Annotated[
        Level,
        option(
            "log-level", "Least severe log lines to print; notes are always printed.", group=LOGGING
        ),
    ] = "warning"
    log_format: Annotated[
        Format,
        option(
            "log-format",
            "Format of standard error; json makes each line a JSON object.",
            group=LOGGING,
        ),
    ] = "text"
    log_file: Annotated[
        Path | None,
        option("log-file", "File for log lines, instead of standard error.", group=LOGGING),
    ] = None

    def begin(self) -> None:
        """Start logging with these settings; raises UserError."""
        logs.begin(self.log_level, self.log_format, self.log_file)


LOG = LogFlags()
REACH = ReachFlags()
RELAY = RelayFlags()
