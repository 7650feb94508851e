"""What Ollama's clients ask about models: which there are, what each can do, which are open."""

from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from p2pinfer.api.completions import body_of
from p2pinfer.api.model_facts import ModelFacts
from p2pinfer.api.models import Models
from p2pinfer.api.problems import Problem, missing
from p2pinfer.core.ids import ModelId

SPOKEN = "0.12.11"
"""The version of Ollama whose interface this is: some clients want one that is new enough."""

NO_EMBEDDINGS = (
    "This server makes no embeddings: its models are made to go on with a text, and the"
    " rows that they make of one compare texts poorly. Run an embedding model beside it."
)

NOT_KEPT_HERE = (
    "Models are not fetched, made or removed by this interface: a swarm serves what its peers lend."
    " /api/tags lists it; p2pinfer model and p2pinfer join lend another."
)


async def refuse_embeddings(_: Request) -> Response:
    """Say why there are none."""
    raise Problem(400, NO_EMBEDDINGS, "unsupported_endpoint")


class OllamaModels:
    """Endpoints about models."""

    def __init__(self, models: Models) -> None:
        self._models = models

    @property
    def routes(self) -> list[Route]:
        """Where each endpoint is."""
        elsewhere = ("create", "copy", "pull", "push", "delete")
        return [
            Route("/api/version", self._version),
            Route("/api/tags", self._tags),
            Route("/api/ps", self._open),
            Route("/api/show", self._show, methods=["POST"]),
            Route("/api/embed", refuse_embeddings, methods=["POST"]),
            Route("/api/embeddings", refuse_embeddings, methods=["POST"]),
            *(
                Route(f"/api/{each}", self._refuse, methods=["POST", "DELETE"])
                for each in elsewhere
            ),
        ]

    async def _refuse(self, _: Request) -> Response:
        raise Problem(400, NOT_KEPT_HERE, "unsupported_endpoint")

    async def _version(self, _: Request) -> Response:
        return JSONResponse({"version": f"{SPOKEN}+p2pinfer.{version('p2pinfer')}"})

    async def _tags(self, _: Request) -> Response:
        return JSONResponse({"models": [self._tag(each) for each in self._models.listed()]})

    async def _open(self, _: Request) -> Response:
        found = []
        for model in self._models.listed():
            if facts := self._models.facts(model):
                more = {"size_vram": 0, "context_length": facts.context}
                found.append({**self._tag(model), **more})
        return JSONResponse({"models": found})

    async def _show(self, request: Request) -> Response:
        """Say what is known; a model is not opened for it, since clients ask it of all of them."""
        body = await body_of(request)
        name = body.get("model", body.get("name"))
        if name is None:
            raise missing("model")
        model = self._models.judge(name)
        facts = self._models.facts(model)
        return JSONResponse(
            {
                "modelfile": "",
                "parameters": "",
                "template": facts.template if facts else "",
                "license": (facts and facts.license) or "",
                "details": _details(facts),
                "model_info": _info(facts),
                "capabilities": ["completion", "tools", *_more(facts)],
                "modified_at": self._since(),
            }
        )

    def _tag(self, model: ModelId) -> dict[str, Any]:
        name, facts = self._models.slug(model), self._models.facts(model)
        return {
            "name": name,
            "model": name,
            "modified_at": self._since(),
            "size": facts.size if facts else 0,
            "digest": model,
            "details": _details(facts),
        }

    def _since(self) -> str:
        return f"{datetime.fromtimestamp(self._models.created, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _details(facts: ModelFacts | None) -> dict[str, Any]:
    family = facts.architecture if facts else ""
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family] if family else [],
        "parameter_size": _rounded(facts.parameters) if facts else "",
        "quantization_level": facts.storage if facts else "",
    }


def _info(facts: ModelFacts | None) -> dict[str, Any]:
    """Return a model's measures by the keys of its file; the context is what sessions hold here."""
    if not facts:
        return {}
    family = facts.architecture
    return {
        "general.architecture": family,
        "general.parameter_count": facts.parameters,
        f"{family}.block_count": facts.layers,
        f"{family}.context_length": facts.context,
        f"{family}.embedding_length": facts.width,
        f"{family}.vocab_size": facts.vocabulary,
    }


def _more(facts: ModelFacts | None) -> list[str]:
    return ["thinking"] if facts and facts.thinks else []


def _rounded(count: int) -> str:
    """Return a number of parameters as Ollama writes it, such as 134.52M."""
    if count >= 10**9:
        return f"{count / 1e9:.1f}B"
    return f"{count / 1e6:.2f}M" if count >= 10**6 else f"{count / 1e3:.2f}K"
