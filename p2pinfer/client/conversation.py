"""A conversation with a swarm: what was said so far, and the next answer."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

from p2pinfer.client.answer import NOTHING_CHECKED, Answer, ChatOptions
from p2pinfer.client.harmony import ChannelsText
from p2pinfer.client.library import Swarm, open_swarm
from p2pinfer.core.errors import NotVerified, PromptTooLong, UserError
from p2pinfer.engine.template import Message
from p2pinfer.node.requester import Client


class Conversation:
    """Questions and answers, each of which knows those before it."""

    def __init__(self, swarm: Swarm, options: ChatOptions) -> None:
        self._swarm, self._options = swarm, options
        self.messages: list[Message] = []
        self.reset()

    def reset(self) -> None:
        """Forget what was said."""
        system = self._options.system
        self.messages = [{"role": "system", "content": system}] if system else []

    def think(self, *, wanted: bool) -> None:
        """Let the model think before its next answers, or not."""
        self._options = replace(self._options, thinks=wanted)

    async def ask(self, question: str, show: Callable[[str], None]) -> Answer:
        """Ask, show the answer's text as it comes, and remember both.

        An answer that is cancelled is remembered as far as it got.

        Raises:
            UserError: the conversation is too long for the session.
            NobodyServes: no chain of peers.
            PeerError: a peer of the chain refused or went away; the conversation is kept.
            TooBusy: the swarm's sessions are all taken.
            NotVerified: what was checked of the answer did not hold, and it was to.
        """
        messages = [*self.messages, {"role": "user", "content": question}]
        answer, channels = Answer(), ChannelsText() if self._swarm.dialect.in_channels else None
        try:
            how = self._options
            prompt = await self._swarm.prompt_of(
                messages, parse_special=how.parse_special, options=how.for_template
            )
            async with aclosing(self._swarm.answer(prompt, self._options, answer)) as pieces:
                async for piece in pieces:
                    show(channels.feed(piece) if channels else piece)
            if channels:
                show(channels.end())
        except PromptTooLong as error:
            raise UserError(f"{error}, or give the session more room with --context") from error
        finally:
            if answer.text:
                said = channels.words if channels else answer.text
                self.messages = [*messages, {"role": "assistant", "content": said}]
        if self._options.certificate:
            if answer.certificate is None:
                raise NotVerified(answer.trust.line() if answer.trust else NOTHING_CHECKED)
            self._options.certificate.write_bytes(answer.certificate)
        return answer

    async def close(self) -> None:
        """Give the session's cells back; the next question opens another one."""
        await self._swarm.pool.close()


@asynccontextmanager
async def open_conversation(
    client: Client,
    options: ChatOptions,
    on_wait: Callable[[str], None],
    chat_template: str | None = None,
) -> AsyncIterator[Conversation]:
    """Talk for as long as the block lasts, and give the session's cells back afterwards.

    ``chat_template`` is Jinja, used in place of the model's own.

    Raises:
        BrokenTemplate: the model can only be asked for completions.
    """
    async with open_swarm(client, 1, on_wait, chat_template) as swarm:
        swarm.check_chat()
        if remark := swarm.remark():
            on_wait(remark)
        yield Conversation(swarm, options)
