"""The limits that a user meets, as Markdown: numbers and reasons are those of the constants.

Which constants, in which order and under which words, is chosen here by hand.
"""

import ast
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.support.limits_of_keeping import KEEPING
from tests.support.limits_of_relays import RELAYS, ROUTERS
from tests.support.limits_of_sums import SUMS

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    what: str
    limit: str
    """``{}`` stands for each constant's value in turn."""
    module: str
    names: str
    """The constants, divided by spaces."""


TABLES: dict[str, list[Row]] = {
    "Sessions": [
        Row(
            "sessions per peer (`--sessions`); KV cells are reserved when a session opens",
            "{}",
            "p2pinfer.core.limits",
            "SESSIONS_DEFAULT",
        ),
        Row("at most (`--sessions`)", "{}", "p2pinfer.cli.machine_options", "SESSIONS_MAX"),
        Row("positions per session (`--context`)", "{}", "p2pinfer.core.limits", "CONTEXT_DEFAULT"),
        Row("positions of the longest one", "{}", "p2pinfer.core.limits", "LONG_CONTEXT_DEFAULT"),
        Row(
            "sessions per requester at a peer (`--sessions-per-requester`)",
            "{}",
            "p2pinfer.core.limits",
            "SESSIONS_PER_REQUESTER_DEFAULT",
        ),
        Row("sessions waiting at a stage", "{}", "scheduler.admission", "WAITING_MAX"),
        Row(
            "how long each waits; then it is refused with a time to come back",
            "{}",
            "scheduler.admission",
            "WAIT_S_MAX",
        ),
        Row(
            "a session between two answers makes room after",
            "{}, where all places are taken and its requester has at least two more than the"
            " newcomer",
            "peers.serving.stage_session",
            "QUIET_S",
        ),
        Row(
            "a silent session makes room after",
            "{}, on the same condition",
            "peers.serving.stage_session",
            "SILENT_S_MAX",
        ),
        Row(
            "a session that nobody uses is freed after",
            "{}; the next turn opens it again",
            "peers.serving.stage_session",
            "IDLE_S_MAX",
        ),
        Row(
            "a session that steps cannot go through is freed after",
            "{} while it is opened",
            "peers.serving.stage_session",
            "LINKED_S_MAX",
        ),
        Row(
            "the same once it worked",
            "{}",
            "peers.serving.stage_session",
            "RELINKED_S_MAX",
        ),
    ],
    "Steps": [
        Row("rows of a narrow decode", "{}", "p2pinfer.core.limits", "NARROW_ROWS_MAX"),
        Row("rows of a wide decode", "{}", "p2pinfer.core.limits", "WIDE_ROWS_MAX"),
        Row(
            "rows of a block; fewer are padded, and no decode has more",
            "{}",
            "p2pinfer.core.limits",
            "BLOCK_ROWS",
        ),
        Row(
            "new tokens from which a prompt is read in blocks to its end",
            "{}",
            "p2pinfer.core.regimes",
            "LONG_ROWS_MIN",
        ),
        Row(
            "steps under way per session; then the sender waits",
            "{}",
            "p2pinfer.core.limits",
            "STEPS_IN_FLIGHT_MAX",
        ),
        Row(
            "rows under way per answer, with drafts; fewer where the route holds fewer",
            "{}",
            "p2pinfer.core.limits",
            "ROWS_IN_FLIGHT_MAX",
        ),
        Row("a message", "{}", "transports.base", "MESSAGE_BYTES_MAX"),
        Row("hops in a route", "{}", "p2pinfer.core.messages", "ROUTE_HOPS_MAX"),
        Row(
            "history of what was sent, of all sessions of a stage or a requester, in memory",
            "{}",
            "peers.steps.history",
            "HISTORY_MEMORY_BYTES_MAX",
        ),
        Row(
            "and then on disk; beyond that the oldest goes",
            "{}",
            "peers.steps.history",
            "HISTORY_DISK_BYTES_MAX",
        ),
    ],
    "When a peer fails or leaves": [
        Row(
            "a peer that falls silent is dropped after",
            "{}",
            "transports.libp2p.muxer",
            "SILENCE_S_MAX",
        ),
        Row(
            "the same where no channel is open",
            "{}",
            "transports.libp2p.muxer",
            "IDLE_SILENCE_S_MAX",
        ),
        Row(
            "a stage too slow is replaced at",
            "{} times its claim",
            "peers.asking.replacements",
            "SLOW_TIMES",
        ),
        Row(
            "by a peer that claims",
            "{} times the speed seen of it",
            "peers.asking.replacements",
            "BETTER_TIMES",
        ),
        Row(
            "a session out of which nothing comes, though its peers are there, ends after",
            "{}; the chat goes on in another",
            "peers.asking.stage_handle",
            "STILL_S_MAX",
        ),
        Row(
            "waiting for a peer that takes a lost one's place",
            "{}",
            "peers.asking.repair",
            "WAIT_S_MAX",
        ),
        Row(
            "workers of a slice that die in the same way, before their peer gives up",
            "{} in a row, none of which lived for {}",
            "p2pinfer.engine.llama.process",
            "DEATHS_MAX STEADY_S",
        ),
        Row(
            "a choice of settings that a probe tries is ruled out after a silence of",
            "{}",
            "p2pinfer.engine.llama.candidate",
            "SILENCE_S_MAX",
        ),
        Row("draining before a peer leaves", "{}", "peers.serving.server", "DRAIN_S_MAX"),
        Row(
            "waiting for others to take over its layers",
            "{}",
            "peers.serving.server",
            "TAKE_OVER_S_MAX",
        ),
    ],
    "Connections": [
        Row("connections", "{}", "transports.libp2p.host", "CONNECTIONS_MAX"),
        Row("per peer", "{}", "transports.libp2p.host", "CONNECTIONS_PER_PEER_MAX"),
        Row(
            "half-open, per address",
            "{}",
            "transports.libp2p.host",
            "HALF_OPEN_PER_ADDRESS_MAX",
        ),
        Row("peers remembered", "{}", "transports.libp2p.past_peers", "PEERS_REMEMBERED_MAX"),
        Row("streams per connection", "{}", "transports.libp2p.yamux", "STREAMS_MAX"),
        Row("inbound streams per peer", "{}", "transports.libp2p.host", "STREAMS_PER_PEER_MAX"),
        Row("unread bytes per stream", "{}", "transports.libp2p.yamux", "WINDOW_BYTES_MAX"),
        Row("unread bytes per connection", "{}", "transports.libp2p.yamux", "UNREAD_BYTES_MAX"),
        *(Row(*each) for each in ROUTERS),
    ],
    "Relays and circuits": [Row(*each) for each in RELAYS],
    "Knowing each other": [
        Row("addresses that a peer advertises", "{}", "p2pinfer.core.checks", "ADDRESSES_MAX"),
        Row(
            "between two looks at the addresses of its own machine",
            "{}",
            "transports.libp2p.transport",
            "MOVED_LOOK_S",
        ),
        Row(
            "advertisements kept; of a larger swarm a sample that covers every layer",
            "{}",
            "p2pinfer.core.advertisement",
            "ADVERTISEMENTS_MAX",
        ),
        Row(
            "between two renewals of an advertisement, in a small swarm",
            "{}",
            "peers.discovery.view",
            "SHORTEST_S",
        ),
        Row(
            "advertisements a second that anybody gets",
            "about {}",
            "peers.discovery.view",
            "ARRIVALS_PER_S_MAX",
        ),
        Row("peers remembered for their standing", "{}", "scheduler.standing", "PEERS_MAX"),
        Row("a gossiped message", "{}", "transports.base", "GOSSIP_BYTES_MAX"),
        Row(
            "gossip from a neighbour",
            "{} at once, {} a second",
            "peers.discovery.gossip",
            "NEWS_MAX NEWS_PER_S",
        ),
        Row(
            "gossip from an author",
            "{} at once, one every {}",
            "peers.discovery.view",
            "SAID_MAX SAID_EACH_S",
        ),
        Row(
            "a neighbour is cut off after",
            "{} offences",
            "transports.libp2p.gossip",
            "OFFENCES_MAX",
        ),
        Row(
            "comparing notes: messages",
            "{}",
            "peers.discovery.anti_entropy",
            "MESSAGES_MAX",
        ),
        Row(
            "advertisements in each",
            "{}",
            "p2pinfer.core.advertisement",
            "KNOWN_MAX",
        ),
        Row("a comparison", "{}", "peers.discovery.directory", "EXCHANGE_S_MAX"),
        Row(
            "it ends after advertisements that are not genuine",
            "{}",
            "peers.discovery.anti_entropy",
            "OFFENCES_MAX",
        ),
        Row(
            "told in comparisons by one peer",
            "{} advertisements, then {} a second",
            "peers.discovery.anti_entropy",
            "TOLD_MAX TOLD_PER_S",
        ),
        Row(
            "keys that the DHT keeps for others",
            "{}",
            "transports.libp2p.peer_finding",
            "KEYS_MAX",
        ),
        Row(
            "calls missed in a row, after which a peer is not counted on",
            "{}",
            "peers.discovery.model_index",
            "CALLS_MISSED_MAX",
        ),
        Row(
            "rounds of calls, and at least how long, in which nobody dials a peer before it hides",
            "{} and {}",
            "peers.discovery.advertiser",
            "PATIENCE_ROUNDS PATIENCE_S_MIN",
        ),
        Row(
            "a hidden peer tries again after",
            "{}",
            "peers.discovery.advertiser",
            "HIDDEN_S",
        ),
        Row(
            "peers of a network remembered until the next start",
            "{}",
            "peers.discovery.bootstrap",
            "ANSWERED_MAX",
        ),
        Row(
            "one that does not answer is forgotten after",
            "{}",
            "p2pinfer.node.known_peers",
            "STALE_S",
        ),
        Row("networks remembered so", "{}", "p2pinfer.node.known_peers", "NETWORKS_MAX"),
        Row("ways in of an invitation", "{}", "p2pinfer.node.invitation", "ADDRESSES_MAX"),
        Row(
            "single-use invitations of one machine, and how long each lies open",
            "{} and {}",
            "p2pinfer.node.guest_tokens",
            "TOKENS_MAX VALID_S",
        ),
        Row(
            "addresses in a file for `--bootstrap`", "{}", "p2pinfer.cli.address_files", "LINES_MAX"
        ),
        Row(
            "addresses taken of `/dnsaddr/` names, by how many questions, and within",
            "{}, {} and {}",
            "transports.dnsaddr",
            "FOUND_MAX LOOKUPS_MAX LOOKUP_S_MAX",
        ),
    ],
    "Models": [
        Row("a chunk", "{}", "p2pinfer.core.manifest", "CHUNK_BYTES"),
        Row("a manifest", "{}", "p2pinfer.core.manifest", "MANIFEST_BYTES_MAX"),
        Row("channels of peers that fetch parts here", "{}", "peers.parts.server", "CHANNELS_MAX"),
        Row("per peer", "{}", "peers.parts.server", "CHANNELS_PER_PEER_MAX"),
        Row(
            "questions on each channel; then refused",
            "{}",
            "p2pinfer.core.messages",
            "QUESTIONS_PER_CHANNEL_MAX",
        ),
        Row("rank of an adapter", "{}", "p2pinfer.engine.gguf.adapters", "RANK_MAX"),
        Row(
            "lessons in a file, and its bytes",
            "{} and {}",
            "p2pinfer.node.lessons",
            "LESSONS_MAX FILE_BYTES_MAX",
        ),
        Row("tokens of a lesson", "{}", "p2pinfer.node.lesson_rows", "LESSON_TOKENS_MAX"),
        Row(
            "slices kept though no process runs them",
            "{}",
            "p2pinfer.engine.store.assemble",
            "SPARE_SLICES_MAX",
        ),
    ],
    "Kept models": [Row(*each) for each in KEEPING],
    "Encrypted sums": [Row(*each) for each in SUMS],
    "Prompts": [
        Row(
            "text of a prompt; a longer one is refused unread",
            "{} bytes for each position of the context",
            "p2pinfer.client.library",
            "BYTES_PER_POSITION_MAX",
        ),
        Row("a chat template", "{} characters", "p2pinfer.engine.template", "TEMPLATE_CHARS_MAX"),
        Row("rendering it", "{}", "p2pinfer.engine.template", "RENDER_CPU_S_MAX"),
        Row("the same by the clock", "{}", "p2pinfer.engine.template", "RENDER_S_MAX"),
        Row("its memory", "{}", "p2pinfer.engine.template", "MEMORY_BYTES_MAX"),
        Row(
            "what it makes of the messages",
            "{} characters",
            "p2pinfer.engine.template",
            "PROMPT_CHARS_MAX",
        ),
        Row("tokenising", "{}", "p2pinfer.engine.llama.tokenizer", "TOKENIZE_S_MAX"),
        Row("its stack", "{}", "p2pinfer.engine.llama.tokenizer", "STACK_BYTES_MAX"),
    ],
    "Evidence": [
        Row(
            "positions between two receipts",
            "{}",
            "p2pinfer.core.receipts",
            "CHECKPOINT_POSITIONS",
        ),
        Row("rows in a fraud proof", "{}", "p2pinfer.core.evidence", "FRAUD_ROWS_BYTES_MAX"),
        Row("positions in a fraud proof", "{}", "p2pinfer.core.fraud", "FRAUD_POSITIONS_MAX"),
        Row("proofs on disk", "{}", "p2pinfer.node.fraud_files", "FILES_MAX"),
        Row("between two checks of others' proofs", "{}", "peers.audits.frauds", "CHECK_EVERY_S"),
        Row("proofs that wait", "{}", "peers.audits.frauds", "WAITING_MAX"),
        Row("rows opened on one channel", "{}", "p2pinfer.core.proving", "PROVEN_ROWS_MAX"),
        Row("an opening", "{}", "p2pinfer.core.opening", "OPENED_BYTES_MAX"),
        Row(
            "a session's cells that can be opened",
            "{}",
            "p2pinfer.engine.llama.loaded_part",
            "COPIED_BYTES_MAX",
        ),
        Row("requesters that a stage opens rows for", "{}", "peers.receipts.prover", "ASKERS_MAX"),
        Row("their turn", "{}", "peers.receipts.prover", "TURN_S_MAX"),
        Row("an opening's time", "{}", "peers.receipts.prover", "OPENING_S_MAX"),
        Row("cells opened for one of them", "{}", "peers.receipts.prover", "PEER_BYTES_MAX"),
        Row("for all of them", "{}", "peers.receipts.prover", "ALL_BYTES_MAX"),
        Row("rows that a stage opens for one answer", "{}", "p2pinfer.core.trust", "ROWS_PROVEN"),
        Row("one opened row", "{}", "p2pinfer.core.shown_layers", "ROW_BYTES_MAX"),
        Row("of a long session", "{}", "p2pinfer.core.shown_layers", "LONG_ROW_BYTES_MAX"),
        Row("times that a stage may put off", "{}", "peers.audits.patience", "PUT_OFF_MAX"),
        Row("opened rows in a certificate", "{}", "peers.audits.inspector", "KEPT_BYTES_MAX"),
        Row("age of a proof key", "{}", "p2pinfer.engine.store.proof_keys", "RENEWED_S"),
    ],
    "The gateway": [
        Row("answers at once (`--sessions`)", "{}", "p2pinfer.cli.serve", "SESSIONS_DEFAULT"),
        Row("questions in the queue", "{}", "p2pinfer.client.session_pool", "WAITING_MAX"),
        Row("how long; then 429", "{}", "p2pinfer.client.session_pool", "WAIT_S_MAX"),
        Row("a request's body", "{}", "p2pinfer.api.completions", "BODY_BYTES_MAX"),
        Row("choices", "{}", "p2pinfer.api.questions", "CHOICES_MAX"),
        Row(
            "`/health` calls the peers of a chain at most once in",
            "{}",
            "p2pinfer.api.gateway",
            "CALLED_S",
        ),
        Row("open pages", "{}", "p2pinfer.api.swarm_state", "LISTENERS_MAX"),
        Row("certificates kept, the newest", "{}", "p2pinfer.api.certificates", "RECEIPTS_MAX"),
        Row("all of them", "{}", "p2pinfer.api.certificates", "RECEIPTS_BYTES_MAX"),
    ],
}


def path_of(module: str) -> Path:
    """Return a module's file, relative to the root."""
    return Path(*module.split(".")).with_suffix(".py")


@cache
def docstrings(module: str) -> dict[str, str]:
    """Return what is said under each constant of a module; constants in a row share it."""
    found: dict[str, str] = {}
    row: list[str] = []
    for node in ast.parse((ROOT / path_of(module)).read_text()).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                row.append(name)
            case ast.Expr(value=ast.Constant(value=str(text))):
                found |= dict.fromkeys(row, " ".join(text.split()))
                row = []
            case _:
                row = []
    return found


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def formatted(name: str, value: float) -> str:
    """Return a constant's value for people, in the unit that its name ends in.

    >>> formatted("X_BYTES_MAX", 4 << 20), formatted("X_S_MAX", 900.0), formatted("X_PER_S", 0.4)
    ('4 MiB', '15 min', '0.4')
    """
    words = name.split("_")
    unit = [word for word in words if word not in {"MAX", "MIN", "DEFAULT"}][-1]
    if unit == "BYTES":
        for size, symbol in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
            if value >= size:
                return f"{_number(value / size)} {symbol}"
        return f"{_number(value)} bytes"
    if unit == "MS":
        unit, value = "S", value / 1000
    if unit == "S" and value >= 2 * 86_400:
        return f"{_number(value / 86_400)} days"
    if unit == "S" and "PER" not in words:
        return f"{_number(value / 60)} min" if value >= 300 else f"{_number(value)} s"
    return _number(value)


def _line(row: Row) -> str:
    module = importlib.import_module(row.module)
    names = row.names.split()
    values = [formatted(name, getattr(module, name)) for name in names]
    reasons = list(dict.fromkeys(docstrings(row.module)[name] for name in names))
    where = f"`{path_of(row.module)}`: " + ", ".join(f"`{name}`" for name in names)
    reason = " ".join(reasons).replace("``", "`")
    return f"| {row.what} | {row.limit.format(*values)} | {reason} | {where} |"


def _tables() -> Iterator[str]:
    for title, rows in TABLES.items():
        yield f"## {title}"
        yield ""
        yield "| what | limit | why | where |"
        yield "|---|---|---|---|"
        yield from map(_line, rows)
        yield ""


def render() -> str:
    """Return the generated part of the page."""
    return "\n".join(_tables())
