"""The gateway's endpoints in one application."""

import logging
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from importlib.resources import files

import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from p2pinfer.api.completions import Completions
from p2pinfer.api.gateway import Access, Gateway
from p2pinfer.api.guard import Guard
from p2pinfer.api.loading import Loading
from p2pinfer.api.marked import marked_route
from p2pinfer.api.metrics import CONTENT_TYPE, Metrics
from p2pinfer.api.models import Models
from p2pinfer.api.ollama import PATHS
from p2pinfer.api.ollama_models import OllamaModels
from p2pinfer.api.problems import Problem
from p2pinfer.api.streams import EventStream
from p2pinfer.api.swarm_state import LISTENERS_MAX, SwarmState
from p2pinfer.api.telemetry import ParentSpan
from p2pinfer.api.translated import Translated, body_for
from p2pinfer.client.words import TRANSLATED, table_path
from p2pinfer.core.errors import UserError
from p2pinfer.node.ledger_db import open_books

_log = logging.getLogger("p2pinfer.api")

PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}

CONTENT_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
}

Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(gateway: Gateway, models: Models | None = None) -> ASGIApp:
    """Put a gateway's endpoints together; it answers for its own model where no others are."""
    models = models or Models(gateway)
    state = SwarmState(gateway)
    gateway.metrics.watch("pages", "Web pages that listen.", lambda: state.listeners)
    access = gateway.access
    middleware = [
        *([Middleware(ParentSpan)] if gateway.telemetry else []),
        Middleware(Counted, metrics=gateway.metrics),
        *_cors(access),  # outside of what turns errors into replies, so that pages may read those
        Middleware(Answered),
        Middleware(Guard, access=access),
    ]
    completions = Completions(models)
    return Starlette(
        routes=[
            *completions.routes,
            *Translated(completions.find).routes,
            *OllamaModels(models).routes,
            *_own_routes(gateway, models, state),
            *_page_routes(),
        ],
        middleware=middleware,
        exception_handlers={
            Problem: _problem,
            HTTPException: _http_problem,
        },
    )


def make_loading_app(loading: Loading, access: Access) -> ASGIApp:
    """Put together what a gateway answers while it loads: its page, and elsewhere that it loads."""

    async def unready(_: Request) -> Response:
        raise loading.problem()

    async def show_version(_: Request) -> Response:
        return JSONResponse({"version": version("p2pinfer")})

    async def events(_: Request) -> Response:
        if loading.listeners >= LISTENERS_MAX:
            raise _too_many_listeners()
        return EventStream(loading.events())

    methods = ["GET", "POST"]
    return Starlette(
        routes=[
            *_page_routes(),
            Route("/version", show_version),
            Route("/api/events", events),
            Route("/{path:path}", unready, methods=methods),
        ],
        middleware=[Middleware(Answered), *_cors(access), Middleware(Guard, access=access)],
        exception_handlers={Problem: _problem, HTTPException: _http_problem},
    )


def _too_many_listeners() -> Problem:
    return Problem(429, f"{LISTENERS_MAX} pages listen already.", kind="rate_limit_error")


def _own_routes(gateway: Gateway, models: Models, state: SwarmState) -> list[Route]:
    async def health(_: Request) -> Response:
        own, *others = (await models.troubles()).items()
        if own[1]:
            return _problem_response(Problem(503, own[1], "no_route", kind="unavailable_error"))
        if not others or gateway.access.api_key:  # no key is asked for here, and names tell
            return JSONResponse({"status": "ok"})
        said = {slug: trouble or "ok" for slug, trouble in (own, *others)}
        return JSONResponse({"status": "ok", "models": said})

    async def show_version(_: Request) -> Response:
        return JSONResponse({"version": version("p2pinfer")})

    async def metrics(_: Request) -> Response:
        return Response(gateway.metrics.render(), headers={"content-type": CONTENT_TYPE})

    async def now(_: Request) -> Response:
        return JSONResponse({**state.describe(), "answers": state.answering()})

    async def receipt(request: Request) -> Response:
        name = request.path_params["name"]
        found = gateway.receipts.find(name)
        if found is None:
            text = "There is no such certificate: its answer is not complete, or it is an old one."
            raise Problem(404, text, "no_receipt")
        shown_as = f'attachment; filename="{name}.certificate"'
        headers = {"content-type": "application/octet-stream", "content-disposition": shown_as}
        return Response(found, headers=headers)

    async def earnings(_: Request) -> Response:
        try:
            found = await trio.to_thread.run_sync(open_books().report)
        except UserError as error:
            raise Problem(503, str(error), "no_ledger", kind="unavailable_error") from error
        return JSONResponse(found)

    async def events(_: Request) -> Response:
        if state.listeners >= LISTENERS_MAX:
            raise _too_many_listeners()
        return EventStream(state.events())

    return [
        Route("/health", health),
        Route("/version", show_version),
        Route("/metrics", metrics),
        Route("/api/state", now),
        Route("/api/events", events),
        Route("/api/receipts/{name}", receipt),
        Route("/api/earnings", earnings),
        marked_route(),
    ]


def _page_routes() -> list[Route]:
    """Serve the page's files, which are read once."""

    def serve(content: bytes, kind: str) -> Endpoint:
        async def endpoint(_: Request) -> Response:
            return Response(content, headers={**PAGE_HEADERS, "content-type": kind})

        return endpoint

    page = files("p2pinfer.api").joinpath("static")
    routes = []
    for folder, way in ((page, "/static"), (page.joinpath("vendor"), "/static/vendor")):
        for file in folder.iterdir():
            kind = CONTENT_TYPES.get(file.name.rpartition(".")[2])
            if kind:
                routes.append(Route(f"{way}/{file.name}", serve(file.read_bytes(), kind)))
    for way, name in (("/", "index.html"), ("/earnings", "earnings.html")):
        routes.append(Route(way, serve(page.joinpath(name).read_bytes(), CONTENT_TYPES["html"])))
    for language in TRANSLATED:
        table = table_path(language).read_bytes()
        routes.append(Route(f"/static/{language}.json", serve(table, CONTENT_TYPES["json"])))
    return routes


def _cors(access: Access) -> list[Middleware]:
    if not access.origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=access.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "x-p2pinfer-receipt", "x-p2pinfer-trust"],
        )
    ]


class Answered:
    """Turns what the layers inside raise before a reply has begun into a reply.

    What Starlette itself would answer, it answers outside of all layers: a page of another site
    could not read that, and no metric would count it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; reply with the problem if there is one."""
        has_begun = False

        async def begin(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, begin)
        except Problem as problem:
            await _problem_response(problem, scope["path"])(scope, receive, send)
        except Exception as error:
            if has_begun or scope["type"] != "http":
                raise
            _log.error("a request failed", exc_info=error)  # a mistake of ours, with its trace
            text = "The gateway failed at this."
            ours = Problem(500, text, kind="server_error")
            await _problem_response(ours, scope["path"])(scope, receive, send)


class Counted:
    """Counts requests to what answers questions, and not to the page, by how they were answered."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and look at the reply's status."""

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(str(message["status"])).inc()
            await send(message)

        path = scope["path"] if scope["type"] == "http" else ""
        is_counted = path.startswith("/v1/") or path in PATHS
        await self._app(scope, receive, count if is_counted else send)


def _problem_response(problem: Problem, path: str = "") -> Response:
    return JSONResponse(body_for(path, problem), problem.status, headers=problem.headers)


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return _problem_response(error, request.url.path)


async def _http_problem(request: Request, error: Exception) -> Response:
    """Answer a request that no endpoint takes."""
    assert isinstance(error, HTTPException)
    text = f"Invalid URL ({request.method} {request.url.path[:200]})"
    problem = Problem(error.status_code, text, "unknown_url")
    response = _problem_response(problem, request.url.path)
    response.headers.update(error.headers or {})
    return response
