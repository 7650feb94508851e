"""Options that several commands share, and their checks."""

import re
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from p2pinfer import logs
from p2pinfer.cli.sizes import check_range
from p2pinfer.core.errors import UserError
from p2pinfer.core.limits import (
    AUDIT_RATE_DEFAULT,
    PROOF_RATE_DEFAULT,
)
from p2pinfer.logs import Format, Level

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it
    from collections.abc import Sequence

    from p2pinfer.client.answer import ChatOptions
    from p2pinfer.engine.gguf.sampling_advice import Advice
    from p2pinfer.node.invitation import Invitation
    from transports.base import Reach

INVITED = "P2PINFER:"
"""How an invitation begins; what reads the rest is loaded by the commands that need it."""

_SAMPLED = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed")
"""Options that are fields of ``Sampling``."""


def option(name: str, text: str, **more: Any) -> Any:
    """Describe an option that can also be set in the environment."""
    variable = f"P2PINFER_{name.upper().replace('-', '_')}"
    more = {"negative_iterable": ""} | more  # such as --empty-bootstrap
    return Parameter(name=f"--{name}", help=text, env_var=variable, **more)


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
Network = Annotated[str, option("network", "Swarm name; peers of other swarms are ignored.")]
NetworkKey = Annotated[
    Path | None,
    option(
        "network-key",
        "File with a private network's key, or of a network of founders (see: p2pinfer network).",
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
        ),
    ] = None
    dht: Annotated[
        bool | None,
        option(
            "dht",
            "Also find a model's peers in a distributed hash table. If omitted: as for --mdns.",
        ),
    ] = None
    invitation: Annotated[
        str | None,
        option(
            "invitation",
            "Invitation into a swarm, as p2pinfer invite prints it; it may also be typed without"
            " the option's name.",
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
    ),
]
Via = Annotated[
    int,
    option(
        "via",
        "Ask through 1 or 2 relays, so that no stage learns this machine's address or a lasting id;"
        " with 2 also no relay learns both who asks and which peers. Slower by a detour.",
    ),
]
Pace = Annotated[
    int,
    option(
        "pace",
        "With --via: milliseconds between rows. They leave in that rhythm then, with empty ones in"
        " the gaps while an answer runs, so that lines do not show when tokens are made. 0: as they"
        " are made.",
    ),
]
WaysIn = Annotated[
    tuple[str, ...],
    option(
        "bootstrap",
        "Addresses of one or more peers already in the swarm, /dnsaddr/ names, or @FILE with one a"
        " line. If omitted: the peers that run on this machine, or those that answered it before.",
    ),
]
MapPort = Annotated[
    bool,
    option(
        "map",
        "Ask the router to pass this peer's port on, by PCP, NAT-PMP or UPnP, and take that back at"
        " the end. Not done with --announce.",
    ),
]
RelayMbit = Annotated[
    float,
    option("relay-mbit", "Carry at most this much for others, in megabits a second."),
]


@Parameter(name="*")
@dataclass(frozen=True)
class RelayFlags:
    """How others reach this machine, and what it carries for those that cannot be reached."""

    relay: Annotated[
        bool,
        option(
            "relay", "Carry bytes between peers behind routers, while others can dial this one."
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
    option(
        "memory", "Memory for weights and sessions, such as 2GiB. If omitted: half of what is free."
    ),
]
AsJson = Annotated[bool, option("json", "Print JSON on standard output, on one line.", negative="")]
Quota = Annotated[
    str | None,
    option(
        "quota",
        "Disk space that all models on this machine may take together, such as 20GB. If omitted:"
        " no limit.",
    ),
]
Peers = Annotated[int, option("peers", "Number of local peers that share the layers.")]


@Parameter(name="*")
@dataclass(frozen=True)
class LogFlags:
    """What is logged, how, and where."""

    log_level: Annotated[
        Level, option("log-level", "Least severe log lines to print; notes are always printed.")
    ] = "warning"
    log_format: Annotated[
        Format,
        option("log-format", "Format of standard error; json makes each line a JSON object."),
    ] = "text"
    log_file: Annotated[
        Path | None, option("log-file", "File for log lines, instead of standard error.")
    ] = None

    def begin(self) -> None:
        """Start logging with these settings; raises UserError."""
        logs.begin(self.log_level, self.log_format, self.log_file)


@Parameter(name="*")
@dataclass(frozen=True)
class AnswerFlags:
    """How answers are generated and checked."""

    max_tokens: Annotated[
        int | None,
        option(
            "max-tokens", "Maximum tokens in an answer. If omitted: as many as fit in the context."
        ),
    ] = None
    temperature: Annotated[
        float | None,
        option(
            "temperature",
            "Sampling temperature; 0 is greedy. If omitted: the model's own value, or 0.7.",
        ),
    ] = None
    top_k: Annotated[
        int | None,
        option(
            "top-k",
            "Sample from the k most likely tokens only; 0 means all. If omitted: the model's own"
            " value, or 40.",
        ),
    ] = None
    top_p: Annotated[
        float | None,
        option(
            "top-p",
            "Sample from the most likely tokens up to this total probability. If omitted: the"
            " model's own value, or 0.95.",
        ),
    ] = None
    min_p: Annotated[
        float | None,
        option(
            "min-p",
            "Drop tokens less likely than this fraction of the most likely one. If omitted: the"
            " model's own value, or 0.05.",
        ),
    ] = None
    repeat_penalty: Annotated[
        float | None,
        option(
            "repeat-penalty",
            "Penalty for repeating tokens; above 1 discourages it. If omitted: the model's own"
            " value, or none.",
        ),
    ] = None
    seed: Annotated[
        int | None, option("seed", "Random seed for sampling. If omitted: a new one each time.")
    ] = None
    system: Annotated[
        str | None,
        option("system", "System message. If omitted: the one recommended for the model, if any."),
    ] = None
    stop: Annotated[
        tuple[str, ...], option("stop", "Text that ends an answer; may be given several times.")
    ] = ()
    chat_template: Annotated[
        Path | None,
        option("chat-template", "Jinja file to use instead of the model's own chat template."),
    ] = None
    parse_special: Annotated[
        bool,
        option(
            "parse-special",
            "Treat <|im_end|> and the like in a message as special tokens, not as text.",
            negative="",
        ),
    ] = False
    think: Annotated[
        bool,
        option(
            "think",
            "Let the model think before it answers. Without it the chat template is told not to,"
            " and thoughts that a prompt begins are ended at once.",
        ),
    ] = True
    keep_layers: Annotated[
        int,
        option(
            "keep-layers",
            "Layers at each end of the model that this machine runs itself. With 0 it runs the"
            " embedding and the head alone, and stages see what amounts to tokens.",
        ),
    ] = 1
    show_tokens: Annotated[
        bool,
        option(
            "show-tokens",
            "Allow --keep-layers 0 on an open network, whose stages can then read everything.",
            negative="",
        ),
    ] = False
    audit_rate: Annotated[
        float,
        option(
            "audit-rate", "Share of stages, 0 to 1, whose work is run again elsewhere to check it."
        ),
    ] = AUDIT_RATE_DEFAULT
    proof_rate: Annotated[
        float,
        option(
            "proof-rate",
            "Share of stages, 0 to 1, that must also open rows, which this machine checks with its"
            " proof key (p2pinfer model proof-key).",
        ),
    ] = PROOF_RATE_DEFAULT
    sponsor: Annotated[
        bool,
        option(
            "sponsor",
            "Ask on the account of a peer that serves on this machine. Full stages prefer such"
            " requests, and learn that the two belong together.",
        ),
    ] = True
    anonymous: Annotated[
        bool,
        option(
            "anonymous",
            "Have that peer vouch as one of several instead: stages learn that some serving peer"
            " does, and not which. What it did for them does not count then, and what is had is not"
            " signed for.",
            negative="",
        ),
    ] = False
    draft: Annotated[
        bool,
        option(
            "draft",
            "Send likely next tokens ahead, taken from the text so far. Over slow links answers"
            " that repeat some of it come faster; no answer changes.",
        ),
    ] = True
    draft_model: Annotated[
        str | None,
        option(
            "draft-model",
            "Small model of the same family, all of it on this machine, that also says which tokens"
            " to send ahead.",
        ),
    ] = None
    certificate: Annotated[
        Path | None, option("certificate", "File to write the latest answer's certificate to.")
    ] = None
    require_verified: Annotated[
        bool,
        option(
            "require-verified", "Hold an answer back until all its checks have passed.", negative=""
        ),
    ] = False

    def options(self, advice: "Advice | None" = None) -> "ChatOptions":
        """Return the options of an answer; where a flag is not set, the model's advice counts.

        Raises:
            UserError: a value is out of range.
        """
        from p2pinfer.client.answer import ChatOptions
        from p2pinfer.core.sampling import SEEDS, USUAL, sampling_of
        from p2pinfer.node.model_supply import check_named

        check_range("max-tokens", 1 if self.max_tokens is None else self.max_tokens, 1)
        check_range("keep-layers", self.keep_layers, 0)
        check_range("audit-rate", self.audit_rate, 0, 1)
        check_range("proof-rate", self.proof_rate, 0, 1)
        if self.draft_model and not self.draft:
            raise UserError("--draft-model is for drafts, which --no-draft switches off: drop one")
        check_named(self.draft_model)
        try:
            said = {name: getattr(self, name) for name in _SAMPLED}
            drawn = {"seed": secrets.randbelow(SEEDS)}
            sampling = sampling_of(USUAL, advice.sampling if advice else {}, drawn, said)
        except ValueError as error:  # attrs says: 'top_p' must be <= 1: 2.0
            text = re.sub(r"'(\w+)'", lambda name: f"--{name[1].replace('_', '-')}", str(error))
            raise UserError(text) from error
        return ChatOptions(
            sampling,
            self.max_tokens,
            advice.system if advice and self.system is None else self.system,
            self.stop,
            self.require_verified,
            self.certificate,
            self.parse_special,
            self.think,
        )

    def template(self) -> str | None:
        """Return the chat template to use, or None for the model's own; raises UserError."""
        from p2pinfer.engine.template import read_template

        return read_template(self.chat_template) if self.chat_template else None


LOG = LogFlags()
REACH = ReachFlags()
RELAY = RelayFlags()
ANSWER = AnswerFlags()
