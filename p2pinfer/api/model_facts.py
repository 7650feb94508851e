"""What is known of a model, open here or not, for those who choose among models."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p2pinfer.api.gateway import Gateway
from p2pinfer.client.grammars import THOUGHTS_BEGIN
from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.ids import ModelId

_MODALITIES = {
    "modality": "text->text",
    "input_modalities": ["text"],
    "output_modalities": ["text"],
}


@dataclass(frozen=True)
class Outline:
    """A model that is not open here, as far as its peers tell."""

    layers: int | None
    context: int | None
    """Positions per session that a whole chain of them takes; None: no such chain is known. Once
    the model is open, this machine's memory and what it was trained on may make it less."""
    audit_rate: float
    require_verified: bool

    def as_dict(self) -> dict[str, Any]:
        """Return what ``/v1/models`` says; nothing is known of its numbers before it is open."""
        return {
            "context_length": self.context,
            "max_model_len": self.context,
            "architecture": _MODALITIES,
        }

    @property
    def trust(self) -> Mapping[str, Any]:
        """How far answers are to be checked here."""
        return {"audit_rate": self.audit_rate, "require_verified": self.require_verified}


@dataclass(frozen=True)
class ModelFacts:
    """A model's measures, and what this gateway makes of it."""

    architecture: str
    license: str | None
    parameters: int
    """Numbers in all of its tensors."""
    size: int
    """Bytes of all of its parts."""
    storage: str
    """How most of its layers' numbers are stored, such as ``Q4_1``."""
    layers: int
    width: int
    vocabulary: int
    context: int
    """Positions per session here: a prompt and its answer."""
    context_trained: int
    template: str
    audit_rate: float
    """The share of stages whose part in an answer is run again by somebody else."""
    require_verified: bool
    """Nothing of an answer is shown before what is checked of it has held."""

    @property
    def thinks(self) -> bool:
        """Whether it may think before it answers."""
        return THOUGHTS_BEGIN in self.template

    def as_dict(self) -> dict[str, Any]:
        """Return what ``/v1/models`` says, in the words that clients of other servers read."""
        return {
            "context_length": self.context,
            "max_model_len": self.context,
            "architecture": _MODALITIES,
            "meta": {
                "n_vocab": self.vocabulary,
                "n_ctx_train": self.context_trained,
                "n_embd": self.width,
                "n_params": self.parameters,
                "size": self.size,
            },
        }

    @property
    def trust(self) -> Mapping[str, Any]:
        """How far answers are checked here."""
        return {"audit_rate": self.audit_rate, "require_verified": self.require_verified}


def facts_of(gateway: Gateway) -> ModelFacts:
    """Describe the model of a gateway."""
    swarm, client = gateway.swarm, gateway.swarm.client
    info, manifest = client.model.info, client.model.manifest
    return ModelFacts(
        architecture=info.architecture,
        license=info.license,
        parameters=sum(math.prod(tensor.shape) for tensor in manifest.tensors),
        size=manifest.size,
        storage=next(iter(info.type_bytes), ""),
        layers=info.layers,
        width=info.width,
        vocabulary=info.vocabulary_tokens,
        context=client.context_max(),
        context_trained=info.context_tokens,
        template=swarm.template,
        audit_rate=client.audit_rate,
        require_verified=gateway.defaults.require_verified,
    )


def outline_of(own: Gateway, model: ModelId) -> Outline:
    """Describe a model that another gateway than the open one would serve, with the same checks."""
    client = own.swarm.client
    seen = client.seen(model)
    return Outline(
        layers=seen[0].layers if seen else None,
        context=context_of(seen, client.ends.first),
        audit_rate=client.audit_rate,
        require_verified=own.defaults.require_verified,
    )


def context_of(offers: Sequence[Advertisement], keep: int) -> int | None:
    """Return how many positions every layer is offered for, but those kept at both ends."""
    for context in sorted({offer.context for offer in offers}, reverse=True):
        reached = keep
        for offer in sorted(offers, key=lambda offer: offer.first):
            if offer.context >= context and offer.first <= reached:
                reached = max(reached, offer.end)
        if reached >= offers[0].layers - keep:
            return context
    return None
