"""One answer of a swarm: a prompt in, streamed text out, and what it took."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import trio
from attrs import evolve

from p2pinfer.core.errors import NoReplacement, NotVerified, PeerError
from p2pinfer.core.messages import Hop
from p2pinfer.core.sampling import Sampling
from p2pinfer.core.text import TextStream
from p2pinfer.core.trust import Trust
from p2pinfer.engine.base import Candidate, Scores
from p2pinfer.node.requester import Client
from peers.asking.session import Session, Token

ATTEMPTS_MAX = 4
"""Without a new token: the old session may be gone for its age, and a peer that has left is spoken
of for a while. The client chooses another route each time, if there is one."""


INTERRUPTED = "interrupted"

NOTHING_CHECKED = "nothing of the answer was checked"

SHORTEST_S = 1e-6
"""Speeds are taken over no less: a coarse clock may show no time at all."""


@dataclass(frozen=True)
class Scored:
    """A token of an answer, and how likely the model found it and others in its place."""

    offset: int
    """Characters of the answer before it; one that a stop string cut off lies past its end."""
    candidates: tuple[Candidate, ...]
    """As of ``NextToken``: the drawn one, then the likeliest."""


_UNTOLD = ("spoken", "stream", "scores", "prompt_scores", "certificate", "read")
"""Of an answer: for programs that ask for them, or for nobody."""


@dataclass
class Answer:
    """What the model said, and how it went."""

    text: str = ""
    tokens: int = 0
    """Tokens of the answer, the one that ended it included."""
    prompt_tokens: int = 0
    reused_tokens: int = 0
    """How many of the prompt's tokens the stages still held from before."""
    tokens_per_second: float = 0.0
    """Of decoding: the first token, which waits for the prompt, is not counted."""
    time_to_first_token_ms: float = 0.0
    drafts_kept: int = 0
    """How many of its tokens were sent ahead, before they were drawn."""
    drafts_dropped: int = 0
    """Tokens sent ahead in vain."""
    finish: str = INTERRUPTED
    """``stop``: the model ended or a stop string came; ``length``; ``interrupted``."""
    route: list[dict[str, Any]] = field(default_factory=list)
    """Per stage the peer and its layers, ``first:end``."""
    path: list[str] = field(default_factory=list)
    """The relays that this machine hid behind, the nearest first."""
    pace_ms: int = 0
    """In what rhythm rows went through them; 0: as they were made."""
    trust: Trust | None = None
    """What was checked of it; None where nothing was."""
    spoken: list[int] = field(default_factory=list, repr=False)
    """Its tokens: where a session is lost for good, another goes on from them."""
    stream: TextStream | None = field(default=None, repr=False)
    """What makes text of them."""
    read: Callable[[], int] = field(default=int, repr=False)
    """How many of the prompt's tokens, and then of the answer's, all stages have run so far."""
    scores: list[Scored] = field(default_factory=list, repr=False)
    """Of each token but the one that ended it, where ``Sampling.top_logprobs`` asks for them."""
    prompt_scores: Scores = field(default=(), repr=False)
    """Of its prompt's tokens from the second on, where ``Sampling.prompt_logprobs`` asks for
    them; they are there with the first token."""
    certificate: bytes | None = field(default=None, repr=False)
    """Its certificate's file, where its receipts join up."""

    def scores_before(self, end: int, start: int = 0) -> tuple[Scored, ...]:
        """Return the scores, from number ``start`` on, of tokens that begin before a character.

        What a stop string cut off begins behind all that was said, so it is never among them.
        """
        return tuple(takewhile(lambda each: each.offset < end, self.scores[start:]))

    def as_dict(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        found = asdict(self) | {"trust": self.trust and self.trust.as_dict()}
        return {name: found[name] for name in found if name not in _UNTOLD}


@dataclass(frozen=True)
class ChatOptions:
    """How answers are made."""

    sampling: Sampling
    max_tokens: int | None = None
    """None: as many as the session has room for."""
    system: str | None = None
    stops: Sequence[str] = ()
    require_verified: bool = False
    """Show nothing of an answer before what is checked of it has held."""
    certificate: Path | None = None
    """Where the newest answer's certificate is written."""
    parse_special: bool = False
    """Take what spells a special token in a message for one, and not for text."""
    thinks: bool = True
    """Let the model think before it answers, where its template can say so."""

    @property
    def for_template(self) -> dict[str, bool]:
        """What the chat template is told of it: nothing, unless thoughts are unwanted."""
        return {} if self.thinks else {"enable_thinking": False}

    def held_to(self, grammar: str) -> "ChatOptions":
        """Return the same options for an answer that keeps to a grammar."""
        return replace(self, sampling=evolve(self.sampling, grammar=grammar))


def route_of(chain: Sequence[Hop]) -> list[dict[str, Any]]:
    """Return what an answer says of the stages that made it."""
    return [{"peer": a.peer, "layers": f"{a.first}:{a.end}"} for a in chain]


class Attempts:
    """Counts how often an answer's session was lost for good, since it last had a new token."""

    def __init__(self, client: Client, answer: Answer) -> None:
        self._client, self._answer = client, answer
        self._tokens, self._left = 0, ATTEMPTS_MAX

    def again(self, error: PeerError) -> bool:
        """Whether to go on in another session."""
        if self._answer.tokens > self._tokens:
            self._tokens, self._left = self._answer.tokens, ATTEMPTS_MAX
        self._left -= 1
        if self._answer.finish != INTERRUPTED or not self._left:
            return False
        return not (isinstance(error, NoReplacement) and self._client.missing())


class AnswerWriter:
    """Turns the tokens that a session draws into text, and fills in what the answer took.

    One per session: where a session is lost, another writer goes on from the answer's tokens.
    """

    def __init__(
        self,
        answer: Answer,
        session: Session,
        prompt: Sequence[int],
        options: ChatOptions,
        now: Callable[[], float] = trio.current_time,
    ) -> None:
        self._answer, self._session, self._now = answer, session, now
        self._before = answer.tokens
        answer.route = route_of(session.route)
        answer.read = lambda: len(session.tokens)
        if not self._before:
            answer.reused_tokens = session.held_of(prompt)
            answer.stream = TextStream(options.stops)
        assert answer.stream
        self._stream = answer.stream
        most = session.context if options.max_tokens is None else options.max_tokens
        self.prompt = [*prompt, *answer.spoken]
        """What the session is to go on from."""
        self.said = len(answer.spoken)
        """How many of those are the answer's own."""
        self.max_tokens = most - self._before
        self.is_over = False
        """The model ended the answer, or a stop string came."""
        self._most = options.max_tokens
        self._started = self._first_at = now()
        self._kept, self._dropped = answer.drafts_kept, answer.drafts_dropped

    def take(self, token: Token) -> str:
        """Return the text that a token makes certain; empty where it makes none, or ends it."""
        answer, stream = self._answer, self._stream
        self._note_scores()
        answer.tokens += 1
        answer.spoken.append(token.id)
        answer.route = route_of(self._session.route)  # others may have taken places in it
        self._measure()
        drafts = self._session.drafts
        answer.drafts_kept = self._kept + drafts.kept
        answer.drafts_dropped = self._dropped + drafts.dropped
        text = ""
        if not token.is_end:
            if token.candidates:
                offset = len(answer.text) + stream.held
                answer.scores.append(Scored(offset, token.candidates))
            text = stream.feed(token.piece)
            answer.text += text
        self.is_over = token.is_end or stream.stopped
        return text

    @property
    def is_cut_short(self) -> bool:
        """Whether the answer would go on, were the session not full."""
        is_all = self._most is not None and self._answer.tokens >= self._most
        return self._session.is_full and not (self.is_over or is_all)

    def end(self) -> str:
        """Return what was held back, and note how the answer ended."""
        self._note_scores()
        self._answer.finish = "stop" if self.is_over else "length"
        text = self._stream.end()
        self._answer.text += text
        return text

    def _note_scores(self) -> None:
        if not self._before:
            self._answer.prompt_scores = self._session.scores

    def _measure(self) -> None:
        answer, now = self._answer, self._now()
        made = answer.tokens - self._before
        if made == 1:
            self._first_at = now
        else:
            elapsed_s = max(now - self._first_at, SHORTEST_S)
            answer.tokens_per_second = round((made - 1) / elapsed_s, 2)
        if answer.tokens == 1:
            answer.time_to_first_token_ms = round(1000 * (now - self._started), 1)


def verified(answer: Answer) -> str:
    """Return an answer's text if all that was checked of it held.

    Raises:
        NotVerified: something did not; the text must not be used.
    """
    if answer.trust and answer.trust.held:
        return answer.text
    answer.text = ""
    raise NotVerified(answer.trust.line() if answer.trust else NOTHING_CHECKED)
