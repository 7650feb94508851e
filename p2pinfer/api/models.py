"""The models that a gateway answers for: its own, and all others that its swarm serves.

Another model's ends are opened when somebody asks it, which may fetch their parts first, and are
closed once nobody has asked for a while.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import trio

from p2pinfer.api.gateway import Gateway
from p2pinfer.api.model_facts import ModelFacts, facts_of, outline_of
from p2pinfer.api.problems import Problem
from p2pinfer.api.replies import model_object, model_slug
from p2pinfer.core.errors import P2pinferError
from p2pinfer.core.ids import ModelId
from p2pinfer.core.model_names import readable_name

OTHERS_MAX = 4
"""Open at once besides the gateway's own: each runs a part of a model on this machine."""

LISTED_MAX = 64
"""Models of a swarm that are named: anybody may claim to serve any number."""

IDLE_S_MAX = 600.0
"""Without a question; opening a model again takes seconds where its parts are here."""

LOOK_S = 10.0
"""How often it is looked at whether a model is still asked."""

Opening = Callable[[ModelId], AbstractAsyncContextManager[Gateway]]
"""Opens a gateway to another model of the swarm for as long as the block lasts."""


@dataclass(eq=False)
class _Other:
    """Another model that is being opened, or is open."""

    used_at: float
    gateway: Gateway | None = None
    failure: str = ""
    """Why it cannot be opened."""
    is_known: trio.Event = field(default_factory=trio.Event)
    """Set once one of the two is there."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Models:
    """What a gateway can be asked for; without an opening, its own model alone."""

    def __init__(
        self, own: Gateway, nursery: trio.Nursery | None = None, opening: Opening | None = None
    ) -> None:
        self._own, self._nursery, self._opening = own, nursery, opening
        self._others: dict[ModelId, _Other] = {}
        self.created = own.now()
        """Seconds since 1970."""

    @property
    def open(self) -> list[ModelId]:
        """The other models that are open now, or being opened."""
        return list(self._others)

    def describe(self) -> list[dict[str, Any]]:
        """Return what clients are told of each model, the gateway's own first."""
        return [
            model_object(
                self.slug(model),
                self.created,
                name,
                model,
                self.facts(model) or outline_of(self._own, model),
            )
            for model, name in self._named().items()
        ]

    def listed(self) -> list[ModelId]:
        """Return the models that can be asked for, the gateway's own first."""
        return list(self._named())

    async def troubles(self) -> dict[str, str]:
        """Return why each open model cannot answer, the gateway's own first; empty where it can."""
        model = self._own.swarm.client.model.id
        found = {self.slug(model): await self._own.trouble()}
        for other, each in [*self._others.items()]:
            if each.gateway:
                found[self.slug(other)] = await each.gateway.trouble()
        return found

    def facts(self, model: ModelId) -> ModelFacts | None:
        """Return what is known of a model; None while it is not open."""
        if model == self._own.swarm.client.model.id:
            return facts_of(self._own)
        other = self._others.get(model)
        return facts_of(other.gateway) if other and other.gateway else None

    def slug(self, model: ModelId) -> str:
        """Return what a model is called: by its name, or by its id where others have that name."""
        slugs = {each: model_slug(name) for each, name in self._named().items()}
        slug = slugs.get(model, model)
        is_first = next((each for each in slugs if slugs[each] == slug), model) == model
        return slug if is_first else model

    def judge(self, name: Any) -> ModelId:
        """Return the model that a request names; raises Problem where there is none."""
        if not isinstance(name, str):
            text = "Missing required parameter: 'model'."
            raise Problem(400, text, "missing_required_parameter", "model")
        named = self._named()
        name = name.removesuffix(":latest")  # as Ollama's clients may call any
        if name == "default":
            return next(iter(named))
        for model, full in named.items():
            known = {model, full, readable_name(full), model_slug(readable_name(full))}
            if name in known or name == self.slug(model):
                return model
        names = ", ".join(self.slug(each) for each in named)
        text = f"The model '{name[:100]}' does not exist here; this swarm serves {names}."
        raise Problem(404, text, "model_not_found", "model")

    async def find(self, name: Any) -> Gateway:
        """Return the gateway to the model that a request names, opened first if need be.

        Raises:
            Problem: there is no such model, or it cannot be opened.
        """
        model = self.judge(name)
        if model == self._own.swarm.client.model.id:
            return self._own
        now = trio.current_time()
        other = self._others.get(model)
        if other is None:
            self._make_room()
            other = self._others[model] = _Other(now)
            assert self._nursery
            self._nursery.start_soon(self._keep, model, other)
        other.used_at = now
        await other.is_known.wait()
        other.used_at = trio.current_time()
        if other.gateway is None:
            text = f"The model '{self.slug(model)}' cannot be opened here: {other.failure}"
            raise Problem(503, text, "model_not_opened", "model", kind="unavailable_error")
        return other.gateway

    def _make_room(self) -> None:
        """Close the model that was not asked for longest, if there are too many."""
        if len(self._others) < OTHERS_MAX:
            return
        idle = [
            model
            for model, each in self._others.items()
            if each.gateway and not each.gateway.running
        ]
        if not idle:
            text = f"{OTHERS_MAX} other models are being asked: ask again in a moment."
            raise Problem(429, text, "rate_limit_exceeded", kind="rate_limit_error")
        longest = min(idle, key=lambda model: self._others[model].used_at)
        self._others.pop(longest).scope.cancel()

    async def _keep(self, model: ModelId, other: _Other) -> None:
        """Keep a model open for as long as it is asked."""
        assert self._opening
        try:
            with other.scope:
                async with self._opening(model) as gateway:
                    other.gateway = gateway
                    other.is_known.set()
                    while gateway.running or trio.current_time() < other.used_at + IDLE_S_MAX:  # noqa: ASYNC110 -- time passes without an event
                        await trio.sleep(LOOK_S)
                    self._forget(model, other)  # before it closes: who asks now opens it again
        except (P2pinferError, OSError) as error:  # such as a full disk, while parts are fetched
            reason = error.strerror if isinstance(error, OSError) else None
            other.gateway, other.failure = None, reason or str(error)
        finally:
            self._forget(model, other)
            other.is_known.set()

    def _forget(self, model: ModelId, other: _Other) -> None:
        if self._others.get(model) is other:
            del self._others[model]

    def _named(self) -> dict[ModelId, str]:
        """Return the models by their ids, the gateway's own first, and their full names."""
        client = self._own.swarm.client
        found = {client.model.id: client.model.info.name}
        others = client.models() if self._opening else {}
        more = sorted(model for model in others if model not in found)[:LISTED_MAX]
        return found | {model: others[model] for model in more}
