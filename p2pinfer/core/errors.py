"""Every exception of p2pinfer, and whose fault each one is.

    P2pinferError
    ├── UserError            a person's input; one sentence that says what to do, and an exit code
    │   ├── BadModelFile     a file that is no GGUF, is cut short, or says absurd things
    │   ├── UnsupportedModel a good file that cannot be split exactly
    │   └── PromptTooLong    it leaves no room for an answer
    ├── NotVerified          what was checked of an answer did not hold
    ├── NobodyServes         no chain of reachable peers covers the model
    │   └── NoPath           too few relays to hide behind
    ├── EngineError          the local engine refused or failed
    │   └── EngineDied       its process ended; the node keeps running
    └── PeerError            another peer failed; carries its id
        ├── PeerUnavailable  it cannot be reached, or went away
        │   ├── ChannelClosed  the channel to it has ended, cleanly or not
        │   └── NoReplacement  it left a session, and no peer could take its place
        ├── RemoteProtocolError  it sent what no correct peer sends
        └── RefusedError     it refused, with a code (in peers.talk)

Exceptions of libraries are translated in the one module that imports the library.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from p2pinfer.core.ids import PeerId

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOBODY_SERVES = 3
EXIT_DAMAGED = 4
EXIT_INTERRUPTED = 130


class P2pinferError(Exception):
    """Base of all that p2pinfer raises; its text is one sentence for a person."""

    exit_code = EXIT_FAILED


class UserError(P2pinferError):
    """What a person typed or named cannot be used; the text says what to do."""

    exit_code = EXIT_USAGE


class BadModelFile(UserError):
    """The file is not a GGUF, is cut short, or contradicts itself."""


class UnsupportedModel(UserError):
    """The model cannot be cut into layer ranges that compute exactly the same results."""


class PromptTooLong(UserError):
    """The prompt leaves no room for an answer in a session."""

    def __init__(self, length: str, context: int) -> None:
        super().__init__(
            f"the prompt has {length}, and a session holds {context} tokens:"
            " shorten it, or begin a new conversation"
        )


class NobodyServes(P2pinferError):
    """No chain of reachable peers covers the layers that are needed."""

    exit_code = EXIT_NOBODY_SERVES


class NoPath(NobodyServes):
    """There are too few relays for the path that was asked for; nobody is called otherwise."""


class NotVerified(P2pinferError):
    """Verification was required and did not succeed."""

    exit_code = EXIT_DAMAGED


class EngineError(P2pinferError):
    """The local engine refused a request or failed at it."""


class EngineDied(EngineError):
    """The engine's process ended; its sessions are lost, the node keeps running."""


class PeerError(P2pinferError):
    """Another peer did something wrong, or failed to do something."""

    def __init__(self, peer: PeerId, text: str) -> None:
        super().__init__(text)
        self.peer = peer


class PeerUnavailable(PeerError):
    """The peer cannot be reached, or went away."""


class ChannelClosed(PeerUnavailable):
    """The channel has ended: the other side closed it, or the connection is gone.

    ``is_lost`` is whether the connection broke, and neither side has ended the channel: the other
    one may still be there.
    """

    def __init__(self, peer: PeerId, text: str, *, is_lost: bool = False) -> None:
        super().__init__(peer, text)
        self.is_lost = is_lost


class NoReplacement(PeerUnavailable):
    """The peer left a session, and no other could take its place in time."""


class RemoteProtocolError(PeerError):
    """The peer sent what no correct peer sends."""


@contextmanager
def lone_errors() -> Iterator[None]:
    """Raise the exception itself instead of the group that a nursery wraps around it.

    If several tasks failed at once and every failure is one of ours, the first is raised: the
    others follow from the same event, such as a peer's death. A cancellation from outside takes
    precedence over any of ours.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        leaves = list(_leaves(group))
        if len(leaves) == 1 or all(isinstance(leaf, P2pinferError) for leaf in leaves):
            raise leaves[0] from leaves[0].__cause__
        _, others = group.split(P2pinferError)
        if others and not any(isinstance(leaf, Exception) for leaf in _leaves(others)):
            raise others from None
        raise


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error
