"""Questions, answers and progress on a terminal or through a pipe."""

import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from rich.console import Console

from p2pinfer import logs
from p2pinfer.client.answer import Answer
from p2pinfer.client.conversation import Conversation
from p2pinfer.client.words import Words, language_of, words_of
from p2pinfer.core.errors import UserError, lone_errors
from p2pinfer.engine.store.disk import size_text
from p2pinfer.places import data_dir
from peers.parts.progress import Progress

notes = Console(stderr=True, highlight=False)
"""Everything that is not the answer goes to standard error."""

QUIET_S = 2.5
"""The silence before a step is named, when there is no spinner; each that follows is longer."""

QUIET_S_MAX = 40.0
"""The longest of them."""

BAR_CHARS = 24

QUESTION_CHARS_MAX = 1_000_000
"""Read from standard input; a context is full long before."""


def words() -> Words:
    """Return the texts of a chat in this person's language."""
    return words_of(language_of(os.environ))


def say(text: str) -> None:
    """Print a note to standard error."""
    if logs.is_json():
        logs.note(text)
        return
    notes.print(text, style="dim", markup=False, soft_wrap=not notes.is_terminal)


def write(text: str) -> None:
    """Print a piece of an answer without delay."""
    sys.stdout.write(text)
    sys.stdout.flush()


def summary(answer: Answer) -> str:
    """Return how fast an answer was, its route, and how far it can be trusted."""
    chain = " → ".join(f"{hop['peer'][-6:]} {hop['layers']}" for hop in answer.route)
    speed = f", {answer.tokens_per_second:.1f} tokens/s" if answer.tokens > 1 else ""
    first = words()("first after {0} ms", f"{answer.time_to_first_token_ms:.0f}")
    trust = f"\n[{words()(answer.trust.line())}]" if answer.trust else ""
    return f"[{answer.tokens} tokens{speed}, {first}; {chain}]{trust}"


async def answer_once(conversation: Conversation, question: str, *, as_json: bool) -> None:
    """Print the answer to one question; raises as ``Conversation.ask``."""
    if as_json:
        answer = await conversation.ask(question, lambda _: None)
        print(json.dumps(answer.as_dict()))
        return
    written = 0

    def show(text: str) -> None:
        nonlocal written
        written += len(text)
        write(text)

    try:
        answer = await conversation.ask(question, show)
    finally:
        if written:
            write("\n")
    say(summary(answer))


@asynccontextmanager
async def until_interrupt() -> AsyncIterator[None]:
    """Run the block until it ends or Ctrl-C is typed; either way continue after it."""
    with trio.open_signal_receiver(signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            yield
            nursery.cancel_scope.cancel()


def question_of(prompt: str | None, *, as_json: bool) -> str | None:
    """Return the one question to answer, from the prompt or a pipe; None for a conversation.

    Raises:
        UserError: there is nothing to answer.
    """
    if prompt is None and sys.stdin is not None and sys.stdin.isatty():
        if as_json:
            raise UserError("--json answers one question: add a prompt, or pipe one in")
        return None
    text = prompt if prompt is not None else _piped()
    if not text.strip():
        raise UserError("nothing to answer: type a prompt, or pipe one in")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # Python lets bytes through that are not text
        raise UserError("the prompt is not valid UTF-8 text") from error
    return text


def _piped() -> str:
    """Read standard input, up to more than any context holds."""
    if sys.stdin is None:
        return ""
    try:
        return sys.stdin.read(QUESTION_CHARS_MAX).strip()
    except UnicodeDecodeError as error:
        raise UserError("the prompt is not valid UTF-8 text") from error


class Spinner:
    """Shows that something is going on: a spinner on a terminal, plain lines elsewhere.

    Elsewhere a step gets a line if it takes long; with ``at_once`` each step gets one immediately,
    for a program that relays it.
    """

    def __init__(self, text: str, *, at_once: bool = False) -> None:
        is_shown = notes.is_terminal and not logs.is_json()
        self._status = notes.status(text) if is_shown else None
        self._at_once = at_once
        self._text, self._is_new = text, False
        self._since = self._said_at = time.monotonic()
        self._waiting, self._quiet_s = "", QUIET_S
        self._is_fetching = self._is_done = False
        if self._status:
            self._status.start()
        else:
            say(text)

    def step(self, text: str) -> None:
        """Show the step that begins now."""
        if text != self._text:
            self._quiet_s = QUIET_S
            self._show(text)

    def _show(self, text: str) -> None:
        if self._is_done:
            return
        self._text, self._since, self._is_new = text, time.monotonic(), True
        if self._status:
            self._status.update(text)
        elif self._at_once:
            self._say_step()

    async def remind(self) -> None:
        """Print lines where it would be silent for long without a spinner; runs beside the work."""
        while not (self._is_done or self._status or self._at_once):
            left_s = self._said_at + self._quiet_s - time.monotonic()
            if left_s > 0:
                await trio.sleep(min(left_s, QUIET_S))  # the next step is named sooner
            else:
                self._say_step()
                self._quiet_s = min(QUIET_S_MAX, 2 * self._quiet_s)

    def _say_step(self) -> None:
        now = time.monotonic()
        taken = "" if self._is_new else f" ({now - self._since:.0f} s)"
        say(self._text + taken)
        self._said_at, self._is_new = now, False

    def tell(self, transfer: Progress) -> None:
        """Show the progress of a transfer of parts, and what it waits for."""
        if transfer.waiting != self._waiting:
            self._waiting = transfer.waiting
            if transfer.waiting:
                say(transfer.waiting)
        begun = transfer.holders > 0 and transfer.done_bytes < transfer.total_bytes
        if transfer.waiting or not begun:
            return
        if not self._is_fetching:
            self._is_fetching = True
            say(fetching_text(transfer))
        self._show(transfer_text(transfer))

    def __call__(self) -> None:
        """Stop showing anything; may be called again."""
        self._is_done = True
        if self._status:
            self._status.stop()


@asynccontextmanager
async def doing(text: str, *, at_once: bool = False) -> AsyncIterator[Spinner]:
    """Show progress until the spinner is called, or the block ends."""
    shown = Spinner(text, at_once=at_once)
    with lone_errors():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shown.remind)
            try:
                yield shown
            finally:
                shown()
                nursery.cancel_scope.cancel()


def fetching_text(transfer: Progress) -> str:
    """Return how much a transfer will fetch, and where it is kept."""
    left = size_text(transfer.total_bytes - transfer.done_bytes)
    return f"fetching {left} from {count(transfer.holders, 'peer')}, kept in {data_dir()}"


def count(number: int, noun: str) -> str:
    """Return a number of things, in singular or plural."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def transfer_text(transfer: Progress) -> str:
    """Return one line with the progress of a transfer."""
    share = transfer.done_bytes / transfer.total_bytes
    bar = "█" * round(BAR_CHARS * share)
    left = "" if transfer.left_s is None else f", {transfer.left_s:.0f} s left"
    return (
        f"fetching {bar:░<{BAR_CHARS}} {share:4.0%} of {transfer.total_bytes / 1e6:,.1f} MB, "
        f"{transfer.bytes_per_s / 1e6:,.1f} MB/s{left}, from {count(transfer.holders, 'peer')}"
    )
