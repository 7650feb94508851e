"""Reading TOML tables into classes: each field states its bounds, and is checked against them."""

import difflib
import types
from collections.abc import Iterator
from random import Random
from typing import Any, Self, TypeVar, get_args, get_origin, get_type_hints

from attrs import NOTHING, Attribute, Factory, field, fields, frozen, has

from p2pinfer.core.errors import UserError

T = TypeVar("T")


@frozen
class Spread:
    """A quantity that varies: uniformly between bounds, or lognormal."""

    low: float
    high: float
    median: float | None = None
    sigma: float = 0.0

    @classmethod
    def read(cls, value: Any) -> Self:
        """Read a number, [low, high] or {median, sigma}; raises ValueError."""
        if _is_number(value):
            return cls(value, value)
        if isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)):
            if value[0] <= value[1]:
                return cls(*value)
        elif isinstance(value, dict) and set(value) == {"median", "sigma"}:
            median, sigma = value["median"], value["sigma"]
            if _is_number(median) and _is_number(sigma) and median > 0 <= sigma <= 3:
                return cls(0, float("inf"), median, sigma)
        raise ValueError("a number, [low, high], or { median = ..., sigma = 0 to 3 }")

    def draw(self, chance: Random) -> float:
        """Return one value."""
        if self.median is not None:
            return self.median * chance.lognormvariate(0, self.sigma)
        return chance.uniform(self.low, self.high)

    @property
    def least(self) -> float:
        """The lower bound."""
        return self.low

    def write(self) -> Any:
        """Return what ``read`` reads."""
        if self.median is not None:
            return {"median": self.median, "sigma": self.sigma}
        return self.low if self.low == self.high else [self.low, self.high]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def entry(text: str, default: Any = NOTHING, least: float | None = None, most: float = 1e9) -> Any:
    """Describe a field of a table, with the bounds of its numbers."""
    if isinstance(default, int | float) and least is None and not isinstance(default, bool):
        least = 0
    return field(default=default, metadata={"text": text, "least": least, "most": most})


def table(text: str, default: Any = NOTHING) -> Any:
    """Describe a table, or an array of tables, within another one."""
    return field(default=default, metadata={"text": text})


def read_table(cls: type[T], values: Any, where: str) -> T:
    """Return the contents of a table.

    Raises:
        UserError: the sentence names the key and its allowed values.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where} must be a table")
    known: dict[str, Attribute[Any]] = {each.name: each for each in fields(cls)}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
            raise UserError(f"{where} has no key {key}: {hint}")
    found: dict[str, Any] = {}
    for name, attribute in known.items():
        if name in values:
            found[name] = _read(hints[name], values[name], _join(where, name), attribute)
        elif attribute.default is NOTHING:
            raise UserError(f"{where} lacks {name}: {attribute.metadata['text']}")
    return cls(**found)


def _join(where: str, name: str) -> str:
    return f"{where}: {name}" if where.endswith(".toml") else f"{where}.{name}"


def _read(kind: Any, value: Any, where: str, attribute: "Attribute[Any]") -> Any:
    """Read one value of a type that tables know."""
    if isinstance(kind, types.UnionType):  # something or None, which TOML cannot say
        kind = next(each for each in get_args(kind) if each is not type(None))
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        if not isinstance(value, list):
            raise UserError(f"{where} must be an array")
        return tuple(_read(item, v, f"{where}[{i}]", attribute) for i, v in enumerate(value))
    if has(kind) and kind is not Spread:
        return read_table(kind, value, where)
    least, most = attribute.metadata.get("least"), attribute.metadata.get("most", 1e9)
    if kind is Spread:
        try:
            spread = Spread.read(value)
        except ValueError as error:
            raise UserError(f"{where} must be {error}") from None
        for bound in (spread.low, spread.high) if spread.median is None else (spread.median,):
            _check_bounds(bound, where, least, most)
        return spread
    if kind is float and _is_number(value):
        _check_bounds(value, where, least, most)
        return float(value)
    if type(value) is not kind:
        names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        raise UserError(f"{where} must be {names[kind]}, not {value!r}")
    if kind is int:
        _check_bounds(value, where, least, most)
    return value


def _check_bounds(value: float, where: str, least: float | None, most: float) -> None:
    low = 0 if least is None else least
    if not low <= value <= most:
        bounds = f"at least {low:g}" if most >= 1e9 else f"from {low:g} to {most:g}"
        raise UserError(f"{where} must be {bounds}, not {value:g}")


def explain(cls: Any, where: str = "") -> Iterator[str]:
    """Yield lines on what a table may hold, with its defaults: a TOML file of comments."""
    nested = []
    hints = get_type_hints(cls)
    for each in fields(cls):
        kind = hints[each.name]
        item = get_args(kind)[0] if get_args(kind) else kind
        if has(item) and item is not Spread:
            nested.append((each, item, get_origin(kind) is tuple))
            continue
        default = "" if each.default is NOTHING else f" = {_shown(each.default)}"
        yield f"{each.name}{default}"
        yield f"    # {each.metadata['text']}"
    for each, item, is_array in nested:
        path = f"{where}{each.name}"
        yield ""
        yield f"[[{path}]]" if is_array else f"[{path}]"
        yield f"    # {each.metadata['text']}"
        yield from explain(item, f"{path}.")


def _shown(default: Any) -> str:
    if isinstance(default, Factory):  # type: ignore[arg-type]
        default = default.factory()
    if isinstance(default, Spread):
        default = default.write()
    if isinstance(default, tuple):
        default = [*map(list, default)] if default and isinstance(default[0], tuple) else [*default]
    return str(default).lower() if isinstance(default, bool) else repr(default).replace("'", '"')
