"""Of the GPUs that were found, the one that a person means is used, or the likely fastest."""

import pytest

from p2pinfer.core.errors import UserError
from p2pinfer.engine.gpu import Gpu, Search, best, choose
from p2pinfer.engine.llama.memory import GPU_BYTES, budget_bytes
from tests.support.gpus import CARD, EMULATED, ON_BOARD

ALL = Search((EMULATED, ON_BOARD, CARD))
SAME_CARD = Gpu("Vulkan2", "A card", "gpu", 9 << 30, 11 << 30, "1", "ab")


def test_off_means_the_cpu() -> None:
    """Whatever was found, in any case."""
    assert choose("Off", ALL) is None


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ((), None),
        ((EMULATED,), None),
        ((EMULATED, ON_BOARD), ON_BOARD),
        ((ON_BOARD, CARD), CARD),
        ((SAME_CARD, CARD), CARD),
    ],
)
def test_auto_takes_what_is_likely_to_be_fastest(
    gpus: tuple[Gpu, ...], expected: Gpu | None
) -> None:
    """No emulated one, a card rather than what is on board, its maker's backend over Vulkan."""
    assert best(gpus) == expected
    assert choose("auto", Search(gpus)) == expected


def test_a_name_counts_in_any_case_and_alone() -> None:
    """Also that of an emulated one; the CPU is no way out then."""
    found = choose("vulkan0", ALL)
    assert found
    assert found.name == "Vulkan0"
    assert found.is_named


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    """So that the next try succeeds."""
    with pytest.raises(UserError, match=r"cuda7 is not here; found: .*CUDA0 \(A card\); or say"):
        choose("cuda7", ALL)
    with pytest.raises(UserError, match=r"finds no GPU; .*make setup GPU=cuda"):
        choose("cuda0", Search())
    with pytest.raises(UserError, match="is not here: the search ended"):
        choose("cuda0", Search(problem="the search ended"))


def test_a_gpus_own_memory_is_planned() -> None:
    """Less what its driver takes; a person's limit counts where it is lower."""
    room = budget_bytes(None, CARD)
    assert 0.8 * CARD.free_bytes < room < CARD.free_bytes - GPU_BYTES
    assert budget_bytes(1 << 30, CARD) == 1 << 30
    assert budget_bytes(1 << 40, CARD) == room
    assert budget_bytes(None, Gpu("CUDA1", "Full", "gpu", 1 << 20, 8 << 30, "", "")) == 0
