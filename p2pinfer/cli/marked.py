"""``p2pinfer marked``: what a person has marked, shown and erased."""

import json
from typing import Annotated

from p2pinfer.cli.options import AsJson, option
from p2pinfer.core.errors import UserError
from p2pinfer.logs import note

TEXT_SHOWN_MAX = 60
"""Characters of a question and of an answer, on a terminal."""


def marked(
    *,
    erase: Annotated[
        tuple[int, ...],
        option("erase", "Erase these, by the numbers that are shown.", consume_multiple=True),
    ] = (),
    erase_all: Annotated[bool, option("erase-all", "Erase all of them.", negative="")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the answers that you marked as good or mended, or erase some.

    /good and /mend in a chat and the buttons under an answer on the page mark them. They stay on
    this machine, in a file that p2pinfer learn marked --out NAME teaches a model from.
    """
    from p2pinfer.node.marked import erase_marked, marked_path, read_marked

    if erase and erase_all:
        raise UserError("--erase-all erases those of --erase, too: take one of them")
    if erase or erase_all:
        left = erase_marked(None if erase_all else set(erase))
        note(f"erased; {left} are left")
    found = read_marked()
    if as_json:
        print(json.dumps({"file": str(marked_path()), "marked": found}, ensure_ascii=False))
        return
    for number, messages in enumerate(found, 1):
        asked, said = (" ".join(str(each["content"]).split()) for each in messages[-2:])
        print(f"{number:>5}  {_short(asked)}  →  {_short(said)}")
    if found:
        note(f"in {marked_path()}; to learn them: p2pinfer learn marked --out NAME")
    elif not (erase or erase_all):
        note("no answer is marked: type /good or /mend TEXT in a chat, or use the page")


def _short(text: str) -> str:
    shown = "".join(char if char.isprintable() else "?" for char in text)
    return shown if len(shown) <= TEXT_SHOWN_MAX else shown[: TEXT_SHOWN_MAX - 1] + "…"
