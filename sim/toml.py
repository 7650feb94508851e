"""Writing a scenario as the TOML that it could have been read from."""

from typing import Any

from attrs import fields, has

from sim.toml_schema import Spread


def to_toml(table: Any, where: str = "") -> str:
    """Return the text of a table, and of those within it; defaults are left out."""
    lines, nested = [], []
    for each in fields(type(table)):
        value = getattr(table, each.name)
        if value == each.default:
            continue
        path = f"{where}{each.name}"
        if isinstance(value, tuple) and value and has(type(value[0])):
            nested += [f"\n[[{path}]]\n{to_toml(item, f'{path}.')}" for item in value]
        elif has(type(value)) and not isinstance(value, Spread):
            nested.append(f"\n[{path}]\n{to_toml(value, f'{path}.')}")
        else:
            lines.append(f"{each.name} = {_value(value)}\n")
    return "".join(lines + nested)


def _value(value: Any) -> str:
    if isinstance(value, Spread):
        return _value(value.write())
    if isinstance(value, dict):
        inside = ", ".join(f"{key} = {_value(each)}" for key, each in value.items())
        return f"{{ {inside} }}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return repr(value)
