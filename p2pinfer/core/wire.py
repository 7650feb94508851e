"""Messages to bytes and back: a msgpack array of the message's name and its fields, in order.

Decoding is the one place where a remote peer's bytes are judged. Whatever is wrong with them, the
error is a ``BadMessage``, which its catcher turns into blame for the sender.
"""

from typing import Any, TypeVar, get_args

import cattrs
import msgpack
from attrs import astuple, fields, has

from p2pinfer.core.advertisement import Heard, State
from p2pinfer.core.learning import Kind
from p2pinfer.core.messages import Chunk, Dtype, Message, Open, Opened, Refusal, Step
from p2pinfer.core.proving import PledgeIs
from p2pinfer.core.regimes import on_wire
from p2pinfer.core.statement import Statement

M = TypeVar("M")


_EMPTY_BYTES = 2
"""Size of msgpack's empty byte string."""
_BIN32 = b"\xc6"
"""msgpack's tag for a byte string with a four-byte length."""


class BadMessage(ValueError):
    """The bytes are not a message of a kind expected here."""


def _exactly(value: Any, kind: type) -> Any:
    """Accept a value only if it is of exactly this type: cattrs alone would make 5 of "5"."""
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} instead of {kind.__name__}")
    return value


def _all_fields(values: Any, kind: Any) -> Any:
    """Build a message, or a part of one, from no more values than it has fields."""
    if len(_exactly(values, tuple)) > len(fields(kind)):
        raise TypeError(f"{kind.__name__} has {len(values)} fields")
    return _converter.structure_attrs_fromtuple(values, kind)


def _all_items(values: Any, kind: Any) -> Any:
    """Build a tuple from an array only: cattrs alone would take a text apart."""
    (item, _) = get_args(kind)
    return tuple(_converter.structure(value, item) for value in _exactly(values, tuple))


def _of_step(step: Step) -> tuple[Any, ...]:
    regime = on_wire(step.regime)
    return step.number, step.position, step.count, regime, step.rows, step.decoding_us


def _of_open(opened: Open) -> tuple[Any, ...]:
    """Leave out last fields that say nothing: peers of before, which lack them, reject them."""
    values: tuple[Any, ...] = _converter.unstructure_attrs_astuple(opened)
    if opened.parent:
        return values
    return values[:-1] if opened.blocks else values[:-2]


def _of_opened(opened: Opened) -> tuple[Any, ...]:
    """Say something only to a requester that named a parent; the others reject the field."""
    return (True,) if opened.inherited else ()


def _of_statement(said: Statement) -> tuple[Any, ...]:
    """Leave out what is not there: peers of before, which know work alone, reject the fields."""
    values: tuple[Any, ...] = astuple(said)
    return values if said.sent or said.kept else values[:-2]


def _of_pledge(said: PledgeIs) -> tuple[Any, ...]:
    """Leave out leaves where all layers follow: peers of before, which ask for all, reject them."""
    path, sent_path = said.received_path, said.sent_path
    values = said.position, said.body, said.signature, path, said.sent, sent_path
    return (*values, said.leaves) if said.leaves else values


def _of_heard(heard: Heard) -> tuple[Any, ...]:
    return heard.body, heard.signature, heard.age_ms


_KINDS: dict[str, Any] = {kind.__name__: kind for kind in get_args(Message)}

_converter = cattrs.Converter(
    unstruct_strat=cattrs.UnstructureStrategy.AS_TUPLE, detailed_validation=False
)
for _kind in (int, bool, str, bytes):
    _converter.register_structure_hook(_kind, _exactly)
_converter.register_structure_hook_func(has, _all_fields)
_converter.register_structure_hook_func(
    lambda kind: getattr(kind, "__origin__", None) is tuple, _all_items
)
# On the path of every token, 4 times in a chain of 3, and of each peer that a newcomer learns of:
# their fields need no building, and they check all that the strict hooks would by themselves.
_FLAT: dict[Any, Any] = {Step: _of_step, Heard: _of_heard}
for _flat, _of in _FLAT.items():
    _converter.register_structure_hook(_flat, lambda values, kind: kind(*values))
    _converter.register_unstructure_hook(_flat, _of)
_converter.register_unstructure_hook(Open, _of_open)
_converter.register_unstructure_hook(Opened, _of_opened)
_converter.register_unstructure_hook(PledgeIs, _of_pledge)
_converter.register_unstructure_hook(Statement, _of_statement)
for _enum in (Dtype, Refusal, State, Kind):
    _converter.register_structure_hook(_enum, lambda value, kind: kind(value))


def encode(message: Message) -> bytes:
    """Return the bytes of a message."""
    if type(message) is Chunk:  # a million bytes, which msgpack would copy twice
        head: bytes = msgpack.packb(["Chunk", message.number, b""])
        size = len(message.data).to_bytes(4, "big")
        return b"".join((head[:-_EMPTY_BYTES], _BIN32, size, message.data))
    kind = type(message)
    values = _FLAT.get(kind, _converter.unstructure)(message)
    encoded: bytes = msgpack.packb([kind.__name__, *values])
    return encoded


def decode(data: bytes, *due: type[M]) -> M:
    """Return the message that the bytes hold, which must be of one of the ``due`` kinds.

    Raises:
        BadMessage: it is something else, or exceeds a limit of ``messages``.
    """
    try:
        name, *values = msgpack.unpackb(data, use_list=False)
        kind = _KINDS[name]
        if kind not in due:
            raise BadMessage(f"{name} is not due here")
        message: M = kind(*values) if kind in _FLAT else _converter.structure(tuple(values), kind)
    except BadMessage:
        raise
    except Exception as error:  # msgpack, cattrs and validators raise five families between them
        raise BadMessage(f"not a message: {error}"[:200]) from error
    return message
