"""What clients say of tools, judged."""

import json
import re
from collections.abc import Mapping
from typing import Any

from p2pinfer.api.problems import Problem, invalid, missing
from p2pinfer.client.tool_calls import Tool, Tools

TOOLS_MAX = 128
"""OpenAI's."""

TOOL_CALLS_MAX = 128
"""In one message: as many as there may be tools."""

NAME = re.compile(r"[\w.-]{1,128}", re.ASCII)
"""Twice what OpenAI takes: some clients name a tool by its server, too."""

SCHEMA_DEPTH_MAX = 64
"""More than people write; what reads schemas goes down into each."""


def tools_of(body: Mapping[str, Any]) -> Tools | None:
    """Return what a chat request lets the model call; raises Problem.

    ``tool_choice`` may be none, auto, required (or any, as Mistral says), or name one.
    """
    listed, choice = body.get("tools"), body.get("tool_choice")
    listed = [] if listed is None else listed
    choice = "auto" if choice is None else choice
    if not isinstance(listed, list) or len(listed) > TOOLS_MAX:
        raise invalid("tools", f"must be a list of at most {TOOLS_MAX} tools")
    offered = tuple(_tool(each, f"tools[{at}]") for at, each in enumerate(listed))
    if len({tool.name for tool in offered}) < len(offered):
        raise invalid("tools", "must not have a name twice")
    several = body.get("parallel_tool_calls")
    if several is not None and not isinstance(several, bool):
        raise invalid("parallel_tool_calls", "must be true or false")
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        choice, offered = _allowed(choice, offered)
    if isinstance(choice, dict):
        name = _name_of(choice)
        offered = tuple(tool for tool in offered if tool.name == name)
        if not offered:
            raise invalid("tool_choice", "must name a function that is among the tools")
        return Tools(offered, must=True, several=False)
    if not isinstance(choice, str) or choice not in {"none", "auto", "required", "any"}:
        raise invalid("tool_choice", "must be none, auto, required, or name a function")
    must = choice in {"required", "any"}
    if must and not offered:
        raise invalid("tool_choice", "needs tools to choose from")
    if choice == "none" or not offered:
        return None
    return Tools(offered, must=must, several=several is not False)


def _allowed(choice: dict[str, Any], offered: tuple[Tool, ...]) -> tuple[Any, tuple[Tool, ...]]:
    """Return the choice among some of the tools, and these."""
    allowed = choice.get("allowed_tools", choice)
    listed = allowed.get("tools") if isinstance(allowed, dict) else None
    if not isinstance(listed, list):
        raise invalid("tool_choice.allowed_tools", "must have a mode, and a list of tools")
    names = [_name_of(each) for each in listed]
    found = tuple(tool for tool in offered if tool.name in names)
    if len(found) < len(listed) or not found:
        raise invalid("tool_choice.allowed_tools", "must name functions that are among the tools")
    return allowed.get("mode", "auto"), found


def _name_of(value: Any) -> Any:
    function = value.get("function", value) if isinstance(value, dict) else None
    return function.get("name") if isinstance(function, dict) else None


def _tool(value: Any, where: str) -> Tool:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or value.get("type", "function") != "function":
        raise invalid(where, "must be a function: other tools are not there")
    name, schema = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise invalid(f"{where}.function.name", "must be 1 to 128 letters, digits, _, - or .")
    words = function.get("description")
    if words is not None and not isinstance(words, str):
        raise invalid(f"{where}.function.description", "must be a text")
    schema = {"type": "object", "properties": {}} if schema is None else schema
    strict = function.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise invalid(f"{where}.function.strict", "must be true or false")
    return Tool(name, words or "", schema_of(f"{where}.function.parameters", schema), bool(strict))


def schema_of(name: str, value: Any) -> dict[str, Any]:
    """Judge a JSON schema as far as its shape goes."""
    if not isinstance(value, dict) or _depth(value) > SCHEMA_DEPTH_MAX:
        raise invalid(name, f"must be a JSON schema of at most {SCHEMA_DEPTH_MAX} levels")
    return value


def _depth(value: Any, most: int = SCHEMA_DEPTH_MAX) -> int:
    """Say how deep JSON is nested, or more than the most."""
    inner = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list) or not most:
        return int(isinstance(value, dict | list))
    return 1 + max((_depth(each, most - 1) for each in inner), default=0)


def calls_of(value: Any, where: str) -> list[dict[str, Any]]:
    """Judge the calls that an assistant's message has made."""
    if not isinstance(value, list) or len(value) > TOOL_CALLS_MAX:
        raise invalid(where, f"must be a list of at most {TOOL_CALLS_MAX} calls")
    return [_call(each, f"{where}[{at}]") for at, each in enumerate(value)]


def _call(value: Any, where: str) -> dict[str, Any]:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise invalid(where, "must be a function's call, with its name")
    arguments, name = function.get("arguments"), value.get("id")
    if arguments is None or arguments == "":
        arguments = {}
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    if not isinstance(arguments, str):
        raise invalid(f"{where}.function.arguments", "must be a JSON object, as a text")
    if not isinstance(name, str):
        raise missing(f"{where}.id")
    called = {"name": function["name"], "arguments": arguments}
    return {"id": name, "type": "function", "function": called}


def tool_message(value: Mapping[str, Any], content: str, where: str) -> dict[str, Any]:
    """Judge what a tool has given."""
    call, name = value.get("tool_call_id"), value.get("name")
    if not isinstance(call, str):
        raise missing(f"{where}.tool_call_id")
    named = {"name": name} if isinstance(name, str) else {}
    return {"role": "tool", "content": content, "tool_call_id": call, **named}


def template_options(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a request tells the model's template, that of thinking included."""
    given = body.get("chat_template_kwargs")
    if given is not None and (not isinstance(given, dict) or _depth(given) > SCHEMA_DEPTH_MAX):
        raise invalid("chat_template_kwargs", "must be an object")
    options = dict(given or {})
    for name in ("enable_thinking", "think"):
        if (wanted := body.get(name)) is not None:
            if not isinstance(wanted, bool):
                raise invalid(name, "must be true or false")
            options["enable_thinking"] = wanted
    effort = body.get("reasoning_effort")
    for name in ("thinking", "reasoning"):
        if (told := body.get(name)) is not None:
            given = _thoughts(name, told)
            effort = given.pop("effort", effort)
            options |= given
    if effort is not None and not isinstance(effort, str):
        raise invalid("reasoning_effort", "must be a word such as none, low or high")
    if effort == "none":
        options["enable_thinking"] = False
    elif effort:
        options.setdefault("reasoning_effort", effort)
    return options


_NO_MATTER = {"budget_tokens", "exclude", "summary", "generate_summary"}
"""Of how others are told to think: how much of it is shown, and the most that is to be paid for."""


def _thoughts(name: str, told: Any) -> dict[str, Any]:
    """Return what a request says of thinking in the words of DeepSeek or of OpenRouter."""
    if not isinstance(told, dict):
        raise invalid(name, "must be an object")
    found: dict[str, Any] = {}
    for key, value in told.items():
        if key in _NO_MATTER or value is None:
            continue
        if key == "type" and value in ("enabled", "disabled", "adaptive"):
            found["enable_thinking"] = value != "disabled"
        elif key == "enabled" and isinstance(value, bool):
            found["enable_thinking"] = value
        elif key == "effort":
            found["effort"] = value
        else:
            raise invalid(f"{name}.{key[:40]}", "is not known here, or not so")
    return found


def refuse_unless_alone(tools: Tools | None, *, is_grammar: bool) -> None:
    """Raise Problem where tools and a grammar would both have the answer."""
    if tools and is_grammar:
        text = "Unsupported parameter: 'grammar' cannot be combined with tools."
        raise Problem(400, text, "unsupported_parameter", "grammar")
