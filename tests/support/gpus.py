"""The GPU that tests marked ``gpu`` use; all others compute on the CPU, as the references do."""

import os
from typing import Final

import pytest

from p2pinfer.engine.gpu import Gpu, Search
from p2pinfer.engine.llama import devices
from p2pinfer.engine.llama.libraries import FOLDER_VARIABLE

LIBRARIES: Final = os.environ.pop(FOLDER_VARIABLE, "")
"""Named for a run of the tests; only the processes of tests on a GPU load them."""

NAMED: Final = os.environ.pop("P2PINFER_GPU", "")

CARD = Gpu("CUDA0", "A card", "gpu", 8 << 30, 10 << 30, "535", "ab")
ON_BOARD = Gpu("Vulkan1", "On board", "integrated", 12 << 30, 16 << 30, "1", "ab")
EMULATED = Gpu("Vulkan0", "llvmpipe (LLVM 15)", "gpu", 20 << 30, 20 << 30, "1", "ab")


def own_gpu(patch: pytest.MonkeyPatch) -> Gpu:
    """Return the GPU to test on, an emulated one too, for processes to come; else skip the test."""
    if LIBRARIES:
        patch.setenv(FOLDER_VARIABLE, LIBRARIES)
    devices.search.cache_clear()
    found: Search = devices.search()
    devices.search.cache_clear()
    for each in found.gpus:
        if each.name == NAMED or not NAMED:
            return each
    why = found.problem or (f"no {NAMED} among {found.gpus}" if NAMED else "llama.cpp finds none")
    pytest.skip(f"no GPU: {why}; docs/gpu.md says how to test without one")
