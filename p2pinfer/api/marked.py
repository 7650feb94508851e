"""Answers that the person at this machine marks on the page: they become lessons, kept here."""

from typing import Any

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from p2pinfer.api.completions import body_of
from p2pinfer.api.guard import is_loopback, name_of
from p2pinfer.api.problems import Problem
from p2pinfer.core.errors import UserError
from p2pinfer.node.marked import mark

FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "via")
"""Headers by which proxies say that a request comes from elsewhere."""


def marked_route() -> Route:
    """Return the endpoint that keeps a conversation whose last answer is right."""
    return Route("/api/marked", _mark, methods=["POST"])


async def _mark(request: Request) -> Response:
    if not _is_at_home(request):
        text = "Answers are marked only on the machine that keeps them, under the name localhost."
        raise Problem(403, text, "not_at_home")
    messages: Any = (await body_of(request)).get("messages")
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        raise Problem(400, "The request has no messages.", "invalid_messages")
    try:
        count = await trio.to_thread.run_sync(mark, messages)
    except UserError as error:
        raise Problem(400, str(error), "not_marked") from error
    except OSError as error:
        raise Problem(507, f"The answer cannot be kept: {error.strerror}.", "not_kept") from error
    return JSONResponse({"marked": count})


def _is_at_home(request: Request) -> bool:
    """Whether a request was made on this machine, as far as one can tell."""
    host, client = name_of(f"//{request.headers.get('host', '')}"), request.client
    is_forwarded = any(name in request.headers for name in FORWARDED)
    return bool(is_loopback(host) and client and is_loopback(client.host) and not is_forwarded)
