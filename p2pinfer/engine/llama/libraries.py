"""Which compiled llama.cpp runs: the one that setup compiled, or a folder that a person names.

Releases of llama.cpp, node-llama-cpp and other programs ship folders with one library for each kind
of CPU and each kind of GPU. ggml calls these backends; the best one for this CPU is loaded, and
those for GPUs only where one is wanted, since their drivers take time and may fail.
"""

import ctypes
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from blake3 import blake3

from p2pinfer.core.errors import EngineError, UserError

FOLDER_VARIABLE: Final = "P2PINFER_LLAMA"
"""Names a folder of llama.cpp's libraries."""

GGML_VERSION: Final = "0.25"
"""ggml's version in the llama.cpp that the Python bindings were written for, without its last
number. Structures change with it, so that another one's functions would read garbage."""

_SUFFIX: Final = {"darwin": "dylib"}.get(sys.platform, "so")
_BINDINGS: Final = "llama_cpp"


def named_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the folder that a person names; None if there is none."""
    named = environment.get(FOLDER_VARIABLE)
    return Path(named).expanduser().resolve() if named else None


def compiled_folder() -> Path:
    """Return where setup installed llama.cpp, without loading it."""
    return _bindings().with_name("lib")


def folder() -> Path:
    """Return where the libraries are that run."""
    return named_folder() or compiled_folder()


def _bindings() -> Path:
    found = importlib.util.find_spec(_BINDINGS)
    assert found, "the Python bindings of llama.cpp are installed"
    assert found.origin
    return Path(found.origin)


def library(name: str, where: Path) -> Path | None:
    """Find a library by its base name, also where a release has put more words behind that."""
    exact = where / f"lib{name}.{_SUFFIX}"
    if exact.exists():
        return exact
    return min(where.glob(f"lib{name}.*.{_SUFFIX}"), default=None)


def required(name: str, where: Path) -> Path:
    """Find a library; raises UserError."""
    found = library(name, where)
    if found is None:
        what = f"has no lib{name}.{_SUFFIX}" if where.is_dir() else "is no folder"
        raise UserError(
            f"{FOLDER_VARIABLE} must name a folder with llama.cpp's libraries: {where} {what}"
        )
    return found


def backends(where: Path) -> list[Path]:
    """Return the libraries for devices other than CPUs, those for GPUs among them."""
    found = {
        match[1]: path
        for path in sorted(where.glob(f"libggml-*.{_SUFFIX}"), reverse=True)
        if (match := re.match(r"libggml-([a-z0-9]+)", path.name))
    }
    return [found[kind] for kind in sorted(found) if kind not in ("base", "cpu", "blas", "rpc")]


def is_split(where: Path) -> bool:
    """Whether a folder has its CPU's code in backends, which must be loaded by hand."""
    return library("ggml-cpu", where) is None or bool([*where.glob("libggml-cpu-*")])


def cpu_backend(where: Path) -> Path:
    """Return the library for this CPU: where there are several, the one that uses most of it.

    Raises:
        UserError: there is none.
    """
    if (only := library("ggml-cpu", where)) and not is_split(where):
        return only
    scores: dict[Path, int] = {}
    for path in sorted(where.glob(f"libggml-cpu-*.{_SUFFIX}")):
        try:
            scores[path] = ctypes.CDLL(str(path)).ggml_backend_score()
        except (OSError, AttributeError):
            continue  # for a system that has what this one lacks
    best = max(scores, key=lambda path: scores[path], default=None)
    if best is None or not scores[best]:
        raise UserError(f"{where} has no library of llama.cpp for this CPU")
    return best


def digest(path: Path) -> str:
    """Return a digest of a library, which names its build."""
    state = blake3(max_threads=blake3.AUTO)
    state.update_mmap(path)
    return state.hexdigest(length=6)


def use_named_folder() -> None:
    """Have the Python bindings, which are not imported yet, take the folder that a person names.

    They would load their own ggml beside it, and refuse a llama.cpp that lacks a function that
    nobody here calls.

    Raises:
        UserError: it cannot be used; the sentence says why.
    """
    where = named_folder()
    if where is None:
        return
    assert _BINDINGS not in sys.modules, "nothing has loaded the other llama.cpp"
    check_version(where)
    name = f"{_BINDINGS}._ctypes_extensions"
    found = importlib.util.spec_from_file_location(name, _bindings().with_name(f"{name[10:]}.py"))
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    _replace_loading(module, where)
    sys.modules[name] = module


def check_version(where: Path) -> None:
    """Raise UserError if the libraries are not of the version that the bindings were made for."""
    for name in ("ggml", "llama"):
        required(name, where)
    base = ctypes.CDLL(str(required("ggml-base", where)))
    try:
        base.ggml_version.restype = ctypes.c_char_p
        version = base.ggml_version().decode()
    except AttributeError:
        version = "too old to say"
    if not version.startswith(f"{GGML_VERSION}."):
        raise UserError(
            f"the llama.cpp in {where} has ggml {version}, and this p2pinfer needs {GGML_VERSION}:"
            f" choose another release for {FOLDER_VARIABLE}"
        )


def _replace_loading(module: ModuleType, where: Path) -> None:
    declaring = module.ctypes_function_for_shared_library

    def load(base_name: str, _: Path) -> ctypes.CDLL:
        return ctypes.CDLL(str(required(base_name, where)))

    def tolerant(loaded: ctypes.CDLL) -> Callable[..., Any]:
        declare = declaring(loaded)

        def of_function(name: str, *args: Any, **more: Any) -> Any:
            if hasattr(loaded, name):
                return declare(name, *args, **more)
            return lambda _: _missing(name)

        return of_function

    setattr(module, "load_shared_library", load)  # noqa: B010 -- mypy knows no such attribute
    setattr(module, "ctypes_function_for_shared_library", tolerant)  # noqa: B010


def _missing(name: str) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise EngineError(f"this build of llama.cpp has no {name}")

    return fail
