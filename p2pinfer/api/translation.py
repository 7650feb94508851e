"""What interfaces other than chat completions share: their bodies become those of a chat."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from p2pinfer.api.gateway import Part
from p2pinfer.api.problems import Problem, invalid
from p2pinfer.api.streams import CONTENT_TYPE, PING, event

Event = dict[str, Any]


class Writer(Protocol):
    """Parts of an answer in, events of an interface out; the reply as a whole at the end."""

    def begin(self, prompt_tokens: int, reused_tokens: int) -> Iterator[Event]:
        """Yield what comes before an answer's first part."""
        ...

    def take(self, part: Part) -> Iterator[Event]:
        """Yield what a part adds."""
        ...

    @property
    def whole(self) -> Event:
        """The reply as a client that does not stream gets it."""
        ...


class Interface(Protocol):
    """One interface: pure functions from its words to a chat's, and back."""

    @property
    def prefix(self) -> str:
        """What the ids of its replies begin with."""
        ...

    @property
    def names(self) -> Mapping[str, str]:
        """Its own words for a chat's parameters, for what is said of them."""
        ...

    @property
    def content_type(self) -> str:
        """Of a stream."""
        ...

    @property
    def ping(self) -> bytes:
        """What a silent stream sends, which means nothing."""
        ...

    def check(self, body: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names of parameters that nobody knows; raises Problem as ``check_names``."""
        ...

    def chat_body(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body of a chat request that asks the same; raises Problem.

        One with a prompt and no messages is a completion's.
        """
        ...

    def at_once(self, head: Mapping[str, Any], body: Mapping[str, Any]) -> Event | None:
        """Return the reply to a request that asks the model nothing; None where it does."""
        ...

    def writer(self, head: Mapping[str, Any], body: Mapping[str, Any]) -> Writer:
        """Return what writes the reply; ``head`` has its id, its time and its model."""
        ...

    def encode(self, told: Event) -> bytes:
        """Return an event as a stream has it."""
        ...

    def failed(self, problem: Problem) -> bytes:
        """Say in the middle of a stream that no more comes."""
        ...


class ServerEvents:
    """What interfaces share whose streams are server-sent events, each named by its type."""

    content_type, ping = CONTENT_TYPE, PING

    def at_once(self, _head: Mapping[str, Any], _body: Mapping[str, Any]) -> Event | None:
        """Every request asks the model."""
        return None

    def encode(self, told: Event) -> bytes:
        """Return an event as a stream has it."""
        return event(told, told["type"])


SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repeat_penalty",
    "repeat_last_n",
)
"""How tokens are drawn, in a chat's words; interfaces that lack some of them take them, too."""


def renamed(problem: Problem, names: Mapping[str, str]) -> Problem:
    """Say what is wrong in an interface's own words."""
    param = problem.param
    for ours, theirs in names.items():
        if param is not None and (param == ours or param.startswith((f"{ours}.", f"{ours}["))):
            # A message's number there is not that of the item that it was made of.
            named = theirs if ours == "messages" else theirs + param[len(ours) :]
            message = problem.message.replace(f"'{param}'", f"'{named}'")
            return Problem(problem.status, message, problem.code, named, problem.kind)
    return problem


def text_of(value: Any, where: str, kinds: tuple[str, ...]) -> str:
    """Return a text that may come in parts of some kinds, each a line; raises Problem."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise invalid(where, "must be a text or a list of parts")
    found = []
    for at, part in enumerate(value):
        text = part.get("text") if isinstance(part, dict) and part.get("type") in kinds else None
        if not isinstance(text, str):
            raise invalid(f"{where}[{at}]", "must be text: the model reads nothing else")
        found.append(text)
    return "\n".join(found)


def going_on(messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Say that the answer goes on from the assistant's last words, if they come last."""
    last = messages[-1] if messages else {}
    goes_on = last.get("role") == "assistant" and last.get("content") and "tool_calls" not in last
    return {"continue_final_message": True} if goes_on else {}


def object_of(arguments: str) -> dict[str, Any]:
    """Return a call's arguments as an object; what is none becomes one's only value."""
    try:
        value = json.loads(arguments)
        json.dumps(value, ensure_ascii=False).encode()  # half a character is no text
    except (ValueError, RecursionError):
        value = arguments
    return value if isinstance(value, dict) else {"arguments": value}


def is_whole(arguments: str) -> bool:
    """Whether a call's arguments came to their end."""
    try:
        return isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        return False
