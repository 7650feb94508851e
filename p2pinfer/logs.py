"""What goes to standard error: notes for a person, or JSON for a program."""

import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from p2pinfer.core.errors import UserError

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["text", "json"]

ROOT = logging.getLogger("p2pinfer")
NOTES = logging.getLogger("p2pinfer.note")

_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime"}

_is_json = False


def begin(level: Level = "warning", form: Format = "text", file: Path | None = None) -> None:
    """Start logging to standard error or a file; raises UserError if it cannot be written.

    A file that is moved away is created again, so a log rotator need not notify the process.
    """
    global _is_json
    _is_json = form == "json"
    handler: logging.Handler = logging.StreamHandler()
    if file:
        from logging.handlers import WatchedFileHandler  # here, because it imports a dozen modules

        try:
            handler = WatchedFileHandler(file.expanduser(), encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write the log {file}: {error.strerror}") from error
    handler.setFormatter(JsonLines() if _is_json else Lines(is_dated=file is not None))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    ROOT.setLevel(level.upper())
    if _is_json:  # notes ignore the log level, and never go into the file
        here = logging.StreamHandler()
        here.setFormatter(JsonLines())
        NOTES.handlers, NOTES.propagate = [here], False
        NOTES.setLevel(logging.INFO)


def is_json() -> bool:
    """Whether every line on standard error must be a JSON object."""
    return _is_json


def note(text: str, *, failed: bool = False) -> None:
    """Print a note for the person who ran the command, whatever the log level."""
    if _is_json:
        NOTES.log(logging.ERROR if failed else logging.INFO, "%s", text)
    else:
        print(f"p2pinfer: {text}" if failed else text, file=sys.stderr, flush=True)


def tell_mistake(error: BaseException) -> None:
    """Report a bug of p2pinfer itself; with a traceback only at level debug."""
    kind = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    text = f"internal error ({kind}); rerun with --log-level debug for a traceback"
    where = error if ROOT.isEnabledFor(logging.DEBUG) else None
    ROOT.error(text, exc_info=where)


class Lines(logging.Formatter):
    """Plain lines; tracebacks only at level debug."""

    def __init__(self, *, is_dated: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._is_dated = is_dated

    def format(self, record: logging.LogRecord) -> str:
        """Return a line."""
        if self._is_dated:
            return super().format(record)
        name = record.name if record.levelno < logging.WARNING else "p2pinfer"
        text = f"{name}: {record.getMessage()}"
        if record.exc_info and ROOT.isEnabledFor(logging.DEBUG):
            text += "\n" + self.formatException(record.exc_info)
        return text


class JsonLines(logging.Formatter):
    """One JSON object per line, including the fields of ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a line."""
        at = datetime.fromtimestamp(record.created, UTC)
        found: dict[str, object] = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "text": record.getMessage(),
        }
        found |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)
        return json.dumps(found, ensure_ascii=False, default=str)
