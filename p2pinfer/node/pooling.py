"""Which models are worth pooling machines for, and what each peer needs for them.

The arithmetic is that of ``peer.layers_max``: a peer takes as many layers as its memory holds, each
with its weights and the KV cells of all sessions, and the requester keeps both ends of the model.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from p2pinfer.engine.gguf.architectures import layers_at_once_max, layers_of_zeros_max
from p2pinfer.engine.gguf.model_header import model_info, split_layer
from p2pinfer.engine.gguf.reader import GgufHeader
from p2pinfer.engine.llama.memory import WORKER_BYTES, sessions_bytes

PUBLISHED_SOURCE = (
    "a table of November 2026, rounded, which was not held against the published files"
)

ENDS_LAYERS = 2
"""A requester keeps the first and the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """What counts when machines are pooled for a model."""

    title: str
    model: str
    """What ``--model`` takes."""
    license: str | None
    architecture: str
    layers: int
    nbytes: int
    layer_bytes: int
    """Of the largest layer."""
    ends_bytes: int
    """The embedding and the head, without layers."""
    cell_bytes: int
    """KV cells, for one position in one layer."""
    context: int
    layers_at_once_max: int
    """The most that one peer may serve."""
    source: str
    """Where the figures are from."""
    is_here: bool = False
    layers_of_zeros: int = 0
    """That a peer may hold besides its own."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The machines that would share a model."""

    memory_bytes: int
    """Of each peer."""
    peers: int
    sessions: int
    context: int


@dataclass(frozen=True, slots=True)
class Share:
    """What a model needs of a pool."""

    model: ModelSize
    layers_each: int
    """Layers that fit into one peer."""
    peers_min: int | None
    """Peers that hold the model together; None if not one layer fits into a peer."""
    layer_needs_bytes: int
    """Of a peer, for one layer."""
    peer_needs_bytes: int
    """Of each peer, if as many peers as there are share the layers evenly."""
    requester_needs_bytes: int
    copies: float
    """How often the pool can hold each layer: 2 survives the loss of any peer."""

    @property
    def fits(self) -> bool:
        """Whether the pool can serve the model."""
        return self.copies >= 1

    @property
    def needs_pool(self) -> bool:
        """Whether one of its machines would be too small to hold all of it."""
        return self.peers_min != 1


def share(model: ModelSize, pool: Pool) -> Share:
    """Work out what a model needs of a pool."""
    positions = pool.sessions * min(pool.context, model.context)
    each = model.layer_bytes + model.cell_bytes * positions
    served = model.layers - ENDS_LAYERS
    zeros = model.layers_of_zeros
    layers = max(0, pool.memory_bytes - WORKER_BYTES) // each - zeros
    layers = max(0, min(layers, served, model.layers_at_once_max))
    evenly = -(-served // pool.peers)
    return Share(
        model,
        layers,
        -(-served // layers) if layers else None,
        WORKER_BYTES + (1 + zeros) * each,
        WORKER_BYTES + (evenly + zeros) * each,
        WORKER_BYTES + model.ends_bytes + ENDS_LAYERS * each,
        pool.peers * layers / served,
    )


def suggest(models: Iterable[ModelSize], pool: Pool) -> list[Share]:
    """Return what models need: first those that fit, then the others; the largest that fit first.

    Of those that do not fit, the one that lacks least comes first.
    """
    shares = [share(model, pool) for model in models]
    fit = sorted((each for each in shares if each.fits), key=lambda each: -each.model.nbytes)
    rest = sorted((each for each in shares if not each.fits), key=lambda each: each.model.nbytes)
    return fit + rest


def measured(
    header: GgufHeader, title: str, model: str, nbytes: int, *, source: str = "its header"
) -> ModelSize:
    """Return the size of a model that is here, from its header; raises BadModelFile."""
    info = model_info(header)
    ends = sum(each.nbytes for name, each in header.tensors.items() if split_layer(name) is None)
    return ModelSize(
        title=title,
        model=model,
        license=info.license,
        architecture=info.architecture,
        layers=info.layers,
        nbytes=nbytes,
        layer_bytes=max(info.layer_bytes),
        ends_bytes=ends,
        cell_bytes=sessions_bytes(header, 1, 1, 1),
        context=info.context_tokens,
        layers_at_once_max=layers_at_once_max(header, info),
        source=source,
        is_here=True,
        layers_of_zeros=layers_of_zeros_max(info),
    )


def _published(
    title: str,
    repository: str,
    license_: str,
    architecture: str,
    *,
    layers: int,
    file_gb: float,
    layer_gb: float,
    ends_gb: float,
    cell_kib: float,
    context: int,
) -> ModelSize:
    return ModelSize(
        title=title,
        model=f"hf:{repository}",
        license=license_,
        architecture=architecture,
        layers=layers,
        nbytes=round(file_gb * 1e9),
        layer_bytes=round(layer_gb * 1e9),
        ends_bytes=round(ends_gb * 1e9),
        cell_bytes=round(cell_kib * 1024),
        context=context,
        layers_at_once_max=layers,
        source=PUBLISHED_SOURCE,
    )


PUBLISHED = (
    _published(
        "gpt-oss-20b",
        "ggml-org/gpt-oss-20b-GGUF",
        "apache-2.0",
        "gpt-oss",
        layers=24,
        file_gb=12.1,
        layer_gb=0.45,
        ends_gb=1.2,
        cell_kib=2,
        context=131_072,
    ),
    _published(
        "Llama 3.3 70B",
        "unsloth/Llama-3.3-70B-Instruct-GGUF:Q4_K_M",
        "llama3.3",
        "llama",
        layers=80,
        file_gb=42,
        layer_gb=0.51,
        ends_gb=1.5,
        cell_kib=4,
        context=131_072,
    ),
    _published(
        "gpt-oss-120b",
        "ggml-org/gpt-oss-120b-GGUF",
        "apache-2.0",
        "gpt-oss",
        layers=36,
        file_gb=63,
        layer_gb=1.7,
        ends_gb=1.2,
        cell_kib=2,
        context=131_072,
    ),
    _published(
        "GLM-4.5-Air",
        "unsloth/GLM-4.5-Air-GGUF:Q4_K_M",
        "mit",
        "glm4moe",
        layers=46,
        file_gb=73,
        layer_gb=1.55,
        ends_gb=1,
        cell_kib=4,
        context=131_072,
    ),
    _published(
        "Qwen3-235B-A22B",
        "unsloth/Qwen3-235B-A22B-GGUF:Q4_K_M",
        "apache-2.0",
        "qwen3moe",
        layers=94,
        file_gb=142,
        layer_gb=1.5,
        ends_gb=1,
        cell_kib=2,
        context=40_960,
    ),
    _published(
        "DeepSeek R1",
        "unsloth/DeepSeek-R1-0528-GGUF:Q4_K_M",
        "mit",
        "deepseek2",
        layers=61,
        file_gb=404,
        layer_gb=6.9,
        ends_gb=1.3,
        cell_kib=1.1,
        context=163_840,
    ),
)
"""Each in the quantisation of about 4 bits that most people use."""
