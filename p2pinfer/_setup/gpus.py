"""Kinds of GPUs that llama.cpp can be compiled for, and what each needs of the system."""

import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from p2pinfer._setup.commands import EXIT_USAGE, SetupError, Shell
from p2pinfer._setup.system import Need, advice_on

VARIABLE: Final = "P2PINFER_SETUP_GPU"
"""Set by ``make setup GPU=KIND``; kept for later setups until another kind, or none, is named."""

NONE: Final = "none"

_VULKAN = """
#include <vulkan/vulkan.hpp>
int main() { vk::LayerSettingsCreateInfoEXT settings; return vk::enumerateInstanceVersion() == 0; }
"""
"""The newest that ggml uses; headers of version 1.3.275 have it."""

_SPIRV = "#include <spirv/unified1/spirv.hpp>\nint main() { return 0; }\n"


class GpuKind(NamedTuple):
    """How llama.cpp is compiled for one kind of GPU."""

    cmake: str
    needs: tuple[Need, ...]


KINDS: Final[Mapping[str, GpuKind]] = {
    "cuda": GpuKind(
        "-DGGML_CUDA=ON",
        (
            Need(
                "NVIDIA's CUDA compiler (nvcc, on PATH)",
                "nvidia-cuda-toolkit cuda-toolkit -",
                command=("nvcc", "--version"),
            ),
        ),
    ),
    "metal": GpuKind("-DGGML_METAL=ON", ()),
    "rocm": GpuKind(
        "-DGGML_HIP=ON",
        (
            Need(
                "AMD's HIP compiler (hipcc, on PATH)",
                "hipcc hipcc -",
                command=("hipcc", "--version"),
            ),
        ),
    ),
    "vulkan": GpuKind(
        "-DGGML_VULKAN=ON",
        (
            Need(
                "a compiler for shaders (glslc)",
                "glslc glslc shaderc",
                command=("glslc", "--version"),
            ),
            Need(
                "Vulkan's C++ headers, 1.3.275 or newer",
                "libvulkan-dev vulkan-loader-devel vulkan-loader",
                "c++",
                _VULKAN,
                ("-lvulkan",),
            ),
            Need(
                "SPIR-V's headers",
                "spirv-headers spirv-headers-devel spirv-headers",
                "c++",
                _SPIRV,
            ),
        ),
    ),
}


def gpu_kind(named: str | None, kept: Path, system: str) -> str:
    """Return the kind of GPU to compile for; empty for CPUs alone.

    Args:
        named: what a person says; None or empty: as the last time.
        kept: the file that keeps it.
        system: platform.system().

    Raises:
        SetupError: there is no such kind, or not on this system.
    """
    if not named:
        with suppress(OSError):
            named = kept.read_text().strip()
    kind = (named or NONE).lower()
    if kind == NONE:
        return ""
    if kind not in KINDS:
        known = ", ".join((*KINDS, NONE))
        raise SetupError(f"GPU={named} is no kind of GPU: choose one of {known}", EXIT_USAGE)
    if (kind == "metal") != (system == "Darwin"):
        why = "is for Macs alone" if kind == "metal" else "does not exist on Macs; GPU=metal does"
        raise SetupError(f"GPU={kind} {why}", EXIT_USAGE)
    return kind


def needs(kind: str, environment: Mapping[str, str]) -> tuple[Need, ...]:
    """Return what compiling for a kind of GPU takes, in Vulkan's SDK too where one is named."""
    sdk = environment.get("VULKAN_SDK")  # read by CMake, but by no compiler
    where = (f"-I{sdk}/include", f"-L{sdk}/lib") if sdk else ()
    return tuple(each._replace(flags=(*where, *each.flags)) for each in KINDS[kind].needs)


def check_needs(kind: str, shell: Shell) -> None:
    """Raise SetupError if the system lacks what compiling for a kind of GPU takes."""
    if kind and (advice := advice_on(needs(kind, shell.environment), shell)):
        raise SetupError(
            f"{advice}\nOr take llama.cpp's libraries ready-made: P2PINFER_LLAMA names their folder"
            " (docs/gpu.md). To go on without a GPU:  make setup GPU=none",
            EXIT_USAGE,
        )


def cmake_flags(kind: str, shell: Shell) -> tuple[str, ...]:
    """Return CMake's flags for a kind of GPU; for CUDA, of the cards that are here."""
    if not kind:
        return ()
    flags = [KINDS[kind].cmake]
    if kind == "cuda" and (found := _compute_capabilities(shell)):
        flags.append(f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(found)}")
    return tuple(flags)


def _compute_capabilities(shell: Shell) -> list[str]:
    """Return the architectures of the NVIDIA cards here, as CMake names them."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        said = subprocess.run(
            command, env=shell.environment, capture_output=True, text=True, check=False
        ).stdout
    except OSError:
        return []  # compiled for another machine, or in a container
    return sorted({f"{major}{minor}" for major, minor in re.findall(r"(\d+)\.(\d+)", said)})
