"""The options that several commands share, and what must hold for them."""

import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from p2pinfer import logs
from p2pinfer.core.errors import UserError
from p2pinfer.core.limits import (
    AUDIT_RATE_DEFAULT,
    CONTEXT_DEFAULT,
    ROWS_PER_DECODE_MAX,
    SESSIONS_DEFAULT,
)
from p2pinfer.logs import Format, Level

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it
    from p2pinfer.client.answer import ChatOptions
    from p2pinfer.engine.gguf.sampling_advice import Advice
    from p2pinfer.node.requester import Machine
    from transports.base import Reach

SESSIONS_MAX = ROWS_PER_DECODE_MAX
"""Each may have a row in one decode; llama.cpp ends the process that makes more."""

_SAMPLED = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed")
"""Options that are fields of ``Sampling``."""


def option(name: str, text: str, **more: Any) -> Any:
    """Describe an option that can also be set in the environment."""
    variable = f"P2PINFER_{name.upper().replace('-', '_')}"
    more = {"negative_iterable": ""} | more  # nobody needs --empty-bootstrap
    return Parameter(name=f"--{name}", help=text, env_var=variable, **more)


def check_range(name: str, value: float, least: float, most: float = float("inf")) -> None:
    """Raise UserError unless an option's value lies in its range."""
    if not least <= value <= most:
        bounds = f"at least {least}" if most == float("inf") else f"from {least} to {most}"
        raise UserError(f"--{name} must be {bounds}, not {value}")


Model = Annotated[str, option("model", "A GGUF file, or 'default': SmolLM2-135M-Instruct.")]
SwarmModel = Annotated[
    str | None,
    option(
        "model", "A GGUF file, an id, or 'default'; else what the swarm serves, or the default."
    ),
]
Network = Annotated[str, option("network", "Swarm name; peers of other swarms are ignored.")]
NetworkKey = Annotated[
    Path | None, option("network-key", "File with a private network's key: see key new.")
]


@Parameter(name="*")
@dataclass(frozen=True)
class ReachFlags:
    """How a swarm is reached."""

    network_key: NetworkKey = None
    mdns: Annotated[bool, option("mdns", "Find peers on the local network without an address.")] = (
        False
    )
    dht: Annotated[bool, option("dht", "Find peers of a model in a distributed hash table.")] = (
        False
    )

    def of(self, network: str) -> "Reach":
        """Return what these flags say; raises UserError."""
        from transports.base import Reach
        from transports.secret import read_network_key

        key = read_network_key(self.network_key) if self.network_key else None
        return Reach(network, key, self.mdns, self.dht)


Bootstrap = Annotated[
    tuple[str, ...],
    option(
        "bootstrap",
        "Addresses of peers already in the swarm, one or several; else of those that answered"
        " before.",
    ),
]
WaysIn = Annotated[
    tuple[str, ...],
    option(
        "bootstrap",
        "Addresses of peers already in the swarm, one or several; else of those that run on this"
        " machine, or answered it before.",
    ),
]
Memory = Annotated[
    str | None, option("memory", "For weights and sessions, as 2GiB; else half of what is free.")
]
AsJson = Annotated[bool, option("json", "Print JSON on standard output, in one line.", negative="")]
Quota = Annotated[
    str | None,
    option("quota", "Most that all models here may take on the disk, as 20GB; else no limit."),
]
Peers = Annotated[int, option("peers", "How many local peers share the layers.")]


@Parameter(name="*")
@dataclass(frozen=True)
class LogFlags:
    """What is logged, how, and where."""

    log_level: Annotated[Level, option("log-level", "Of log lines; notes are always shown.")] = (
        "warning"
    )
    log_format: Annotated[
        Format, option("log-format", "With json, all on standard error is JSON, a line each.")
    ] = "text"
    log_file: Annotated[
        Path | None, option("log-file", "Where log lines go, in place of standard error.")
    ] = None

    def begin(self) -> None:
        """Log so from now on; raises UserError."""
        logs.begin(self.log_level, self.log_format, self.log_file)


@Parameter(name="*")
@dataclass(frozen=True)
class MachineFlags:
    """What may be used of this machine."""

    sessions: Annotated[int, option("sessions", "Sessions at once.")] = SESSIONS_DEFAULT
    context: Annotated[int, option("context", "Positions per session.")] = CONTEXT_DEFAULT
    threads: Annotated[int, option("threads", "Engine threads; no more than free cores.")] = 1

    def machine(self) -> "Machine":
        """Return what these flags say; raises UserError."""
        from p2pinfer.core.checks import POSITIONS_MAX
        from p2pinfer.engine.llama.memory import usable_cores
        from p2pinfer.node.requester import Machine

        check_range("sessions", self.sessions, 1, SESSIONS_MAX)
        check_range("context", self.context, 1, POSITIONS_MAX)
        check_range("threads", self.threads, 1, usable_cores())  # more would only spin
        return Machine(self.sessions, self.context, self.threads)


@Parameter(name="*")
@dataclass(frozen=True)
class AnswerFlags:
    """How answers are made."""

    max_tokens: Annotated[
        int | None, option("max-tokens", "Longest answer; else what the context has room for.")
    ] = None
    temperature: Annotated[
        float | None, option("temperature", "0 is greedy; else the model's own, or 0.7.")
    ] = None
    top_k: Annotated[
        int | None,
        option("top-k", "Keep the k likeliest tokens, 0 all; else the model's own, or 40."),
    ] = None
    top_p: Annotated[
        float | None,
        option("top-p", "Keep tokens up to this probability; else the model's own, or 0.95."),
    ] = None
    min_p: Annotated[
        float | None,
        option("min-p", "Drop tokens less likely than this share; else the model's own, or 0.05."),
    ] = None
    repeat_penalty: Annotated[
        float | None,
        option("repeat-penalty", "Above 1: say nothing twice; else the model's own, or none."),
    ] = None
    seed: Annotated[int | None, option("seed", "Of sampling; drawn when not given.")] = None
    system: Annotated[
        str | None, option("system", "A system message; else what suits the default model.")
    ] = None
    stop: Annotated[tuple[str, ...], option("stop", "Texts that end an answer.")] = ()
    chat_template: Annotated[
        Path | None,
        option("chat-template", "A Jinja file that makes prompts in place of the model's own."),
    ] = None
    parse_special: Annotated[
        bool,
        option("parse-special", "Let <|im_end|> and such in a message count.", negative=""),
    ] = False
    keep_layers: Annotated[
        int, option("keep-layers", "Layers at each end that this machine runs itself.")
    ] = 1
    audit_rate: Annotated[
        float, option("audit-rate", "Share of stages that somebody else runs again, 0 to 1.")
    ] = AUDIT_RATE_DEFAULT
    sponsor: Annotated[
        bool,
        option(
            "sponsor",
            "Ask on the account of a peer that serves on this machine, which full stages prefer;"
            " they learn that the two belong together.",
        ),
    ] = True
    certificate: Annotated[
        Path | None,
        option("certificate", "Write what was signed and checked of the newest answer."),
    ] = None
    require_verified: Annotated[
        bool,
        option("require-verified", "Hold an answer back until its checks passed.", negative=""),
    ] = False

    def options(self, advice: "Advice | None" = None) -> "ChatOptions":
        """Return what these flags say, and what the model advises where they are silent.

        Raises:
            UserError: a value is out of range.
        """
        from p2pinfer.client.answer import ChatOptions
        from p2pinfer.core.sampling import SEEDS, USUAL, sampling_of

        check_range("max-tokens", 1 if self.max_tokens is None else self.max_tokens, 1)
        check_range("keep-layers", self.keep_layers, 1)
        check_range("audit-rate", self.audit_rate, 0, 1)
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
        )

    def template(self) -> str | None:
        """Return the chat template that is to be used; None is the model's. Raises UserError."""
        from p2pinfer.engine.template import read_template

        return read_template(self.chat_template) if self.chat_template else None


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


def parse_bytes(name: str, text: str | None) -> int | None:
    """Return what a person means by ``2GiB``, ``500M`` or a bare number; raises UserError."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?i?)b?", text.strip().lower())
    if not found or found[2] not in _UNITS:
        raise UserError(f"--{name} {text} is not a size such as 2GiB or 500MB")
    return int(float(found[1]) * _UNITS[found[2]])


LOG = LogFlags()
MACHINE = MachineFlags()
REACH = ReachFlags()
ANSWER = AnswerFlags()
