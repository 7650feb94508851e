"""What goes wrong, in the words and with the status codes of OpenAI's interface."""

from dataclasses import dataclass
from typing import Any

from p2pinfer.client.session_pool import TooBusy
from p2pinfer.core.errors import (
    EngineError,
    NobodyServes,
    NotVerified,
    P2pinferError,
    PeerError,
    PromptTooLong,
    UserError,
)

RETRY_AFTER_S = 5
"""What a client is told to wait: some answers take no longer."""


@dataclass
class Problem(Exception):
    """A request that gets no answer, and why."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    kind: str = "invalid_request_error"

    @property
    def body(self) -> dict[str, Any]:
        """The envelope that clients expect."""
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """What the status calls for."""
        if self.status == 401:
            return {"www-authenticate": "Bearer"}
        return {"retry-after": str(RETRY_AFTER_S)} if self.status in {429, 503} else {}


def problem_of(error: P2pinferError) -> Problem:
    """Say what an error of ours is to a client."""
    text = str(error)
    match error:
        case PromptTooLong():
            return Problem(400, text, "context_length_exceeded", "messages")
        case UserError():
            return Problem(400, text)
        case TooBusy():
            return Problem(429, text, "rate_limit_exceeded", kind="rate_limit_error")
        case NobodyServes():
            return Problem(503, text, "no_route", kind="unavailable_error")
        case NotVerified():
            return Problem(502, text, "not_verified", kind="server_error")
        case PeerError():
            return Problem(
                502, f"a peer of the chain failed: {text}", "peer_failed", kind="server_error"
            )
        case EngineError():
            return Problem(500, text, "engine_failed", kind="server_error")
        case _:
            return Problem(500, text, kind="server_error")


def missing(name: str) -> Problem:
    """Say that a parameter is not there."""
    return Problem(
        400, f"Missing required parameter: '{name}'.", "missing_required_parameter", name
    )


def invalid(name: str, text: str) -> Problem:
    """Say what a parameter must be."""
    return Problem(400, f"Invalid value for '{name}': it {text}.", "invalid_value", name)
