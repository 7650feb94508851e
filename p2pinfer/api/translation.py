"""What interfaces other than chat completions share: their bodies become those of a chat."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from p2pinfer.api.gateway import Part
from p2pinfer.api.problems import Problem, invalid

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

    def chat_body(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body of a chat request that asks the same; raises Problem."""
        ...

    def writer(self, head: Mapping[str, Any], body: Mapping[str, Any]) -> Writer:
        """Return what writes the reply; ``head`` has its id, its time and its model."""
        ...


def refuse_unless_nothing(body: Mapping[str, Any], only: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise Problem for parameters that cannot be honoured, unless they ask for nothing."""
    for name, values in only.items():
        value = body.get(name)
        if value is not None and not any(
            value == each and isinstance(value, bool) == isinstance(each, bool) for each in values
        ):
            text = f"Unsupported parameter: '{name}' is not supported by this server."
            raise Problem(400, text, "unsupported_parameter", name)


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


def object_of(arguments: str) -> dict[str, Any]:
    """Return a call's arguments as an object; what is none becomes one's only value."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        value = arguments
    return value if isinstance(value, dict) else {"arguments": value}
