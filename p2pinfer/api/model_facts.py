"""What is known of a model that is open here, for those who choose among models."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from p2pinfer.api.gateway import Gateway
from p2pinfer.client.grammars import THOUGHTS_BEGIN


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
            "architecture": {
                "modality": "text->text",
                "input_modalities": ["text"],
                "output_modalities": ["text"],
            },
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
