"""GPUs that were found here, and which of them an engine uses."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from p2pinfer.core.errors import UserError

OFF: Final = "off"
AUTO: Final = "auto"

_EMULATED: Final = ("llvmpipe", "lavapipe", "swiftshader")
"""In the descriptions of GPUs that are programs, which compute on the CPU, and slower."""

HOW_TO_GET: Final = (
    "to have llama.cpp compiled for one, type: make setup GPU=cuda, or GPU=metal, or GPU=vulkan"
)


@dataclass(frozen=True)
class Gpu:
    """A GPU that llama.cpp can use."""

    name: str
    """As ggml names it, such as ``CUDA0``."""
    description: str
    kind: str
    """``gpu``, or ``integrated`` where it shares the machine's memory."""
    free_bytes: int
    total_bytes: int
    driver: str
    """Its version, as far as the system tells."""
    build: str
    """A digest of the library that computes on it."""
    is_named: bool = False
    """A person wants this one: nothing is computed elsewhere instead."""

    @property
    def fingerprint(self) -> str:
        """All that its arithmetic depends on."""
        return f"{self.name} {self.description} {self.driver} {self.build}"

    @property
    def suffix(self) -> str:
        """What the names of files end with that hold for it."""
        return f"-{self.name.lower()}"

    @property
    def why_not(self) -> str:
        """Why it is not used unless a person names it; empty if it may be."""
        is_emulated = any(word in self.description.lower() for word in _EMULATED)
        return "it is emulated by the CPU, which is faster alone" if is_emulated else ""

    def __str__(self) -> str:
        return f"{self.name} ({self.description})"


@dataclass(frozen=True)
class Search:
    """What a search for GPUs found, and what went wrong."""

    gpus: tuple[Gpu, ...] = ()
    problem: str = ""
    """Why it found none; empty if nothing failed."""


def choose(named: str, search: Search) -> Gpu | None:
    """Return the GPU to use; None for the CPU.

    Args:
        named: ``off``, ``auto``, or a name in any case.
        search: what was found.

    Raises:
        UserError: there is no GPU of that name; the sentence lists those that there are.
    """
    if named.lower() == OFF:
        return None
    if named.lower() == AUTO:
        return best(search.gpus)
    for each in search.gpus:
        if each.name.lower() == named.lower():
            return replace(each, is_named=True)
    if search.gpus:
        listed = ", ".join(map(str, search.gpus))
        raise UserError(f"--gpu {named} is not here; found: {listed}; or say auto or off")
    why = search.problem or f"llama.cpp finds no GPU; {HOW_TO_GET}"
    raise UserError(f"--gpu {named} is not here: {why}")


def best(gpus: Sequence[Gpu]) -> Gpu | None:
    """Return the one that is likely to be the fastest; None if none should be used."""
    usable = [each for each in gpus if not each.why_not]
    return min(usable, key=_rank, default=None)


def _rank(gpu: Gpu) -> tuple[bool, bool, int]:
    # A maker's own backend is faster than Vulkan on the same card.
    return gpu.kind == "integrated", gpu.name.lower().startswith("vulkan"), -gpu.total_bytes
