"""ggml's registry of devices, and the bytes of its tensors, wherever these lie.

A device is a CPU or a GPU as a backend sees it: one card may appear as ``CUDA0`` and ``Vulkan0``.
Only ctypes is needed, so that a process that just looks for devices starts quickly.
"""

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from p2pinfer.core.errors import UserError
from p2pinfer.engine.llama import libraries

_KINDS: Final = {1: "gpu", 2: "integrated"}
"""``ggml_backend_dev_type``; the others are CPUs and what only helps them."""


_NO_FUSION: Final = (
    "GGML_VK_DISABLE_FUSION",
    "GGML_CUDA_DISABLE_FUSION",
    "GGML_METAL_FUSION_DISABLE",
)
"""Variables that keep backends from computing several nodes in one kernel. A layer's last sum and
the next layer's norm would else give other bits than where the model is cut between them."""


@dataclass(frozen=True)
class FoundDevice:
    """A GPU, as ggml describes it."""

    name: str
    """Such as ``Vulkan0``; numbered for each backend."""
    description: str
    kind: str
    """``gpu``, or ``integrated`` where it shares the machine's memory."""
    free_bytes: int
    total_bytes: int
    handle: int


class Ggml:
    """The loaded ggml.

    Args:
        where: the folder of its libraries.

    Raises:
        UserError: it has none for this CPU.
    """

    def __init__(self, where: Path) -> None:
        os.environ |= dict.fromkeys(_NO_FUSION, "1")  # read when a backend finds its devices
        self._where = where
        self.base = ctypes.CDLL(str(libraries.required("ggml-base", where)))
        self._registry = ctypes.CDLL(str(libraries.required("ggml", where)))
        self._declare()
        self.name_of, self.operation_of = self.base.ggml_get_name, self.base.ggml_op_desc
        self.bytes_of, self._get = self.base.ggml_nbytes, self.base.ggml_backend_tensor_get
        self._into = ctypes.create_string_buffer(0)
        self.cpu = libraries.cpu_backend(where)
        self._is_split = libraries.is_split(where)
        if self._is_split:
            self._load(self.cpu)
        self._devices: list[FoundDevice] | None = None

    def _declare(self) -> None:
        base, registry = self.base, self._registry
        pointer, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
        sizes = ctypes.POINTER(size)
        declared: Sequence[tuple[Any, Any, Sequence[Any]]] = (
            (registry.ggml_backend_load, pointer, [text]),
            (registry.ggml_backend_register, None, [pointer]),
            (base.ggml_backend_reg_dev_count, size, [pointer]),
            (base.ggml_backend_reg_dev_get, pointer, [pointer, size]),
            (registry.ggml_backend_dev_count, size, []),
            (registry.ggml_backend_dev_get, pointer, [size]),
            (base.ggml_backend_dev_name, text, [pointer]),
            (base.ggml_backend_dev_description, text, [pointer]),
            (base.ggml_backend_dev_type, ctypes.c_int, [pointer]),
            (base.ggml_backend_dev_memory, None, [pointer, sizes, sizes]),
            (base.ggml_get_name, text, [pointer]),
            (base.ggml_op_desc, text, [pointer]),
            (base.ggml_nbytes, size, [pointer]),
            (base.ggml_backend_tensor_get, None, [pointer, pointer, size, size]),
            (base.ggml_backend_tensor_set, None, [pointer, pointer, size, size]),
        )
        for function, result, arguments in declared:
            function.restype, function.argtypes = result, arguments

    def _load(self, backend: Path) -> bool:
        return bool(self._registry.ggml_backend_load(str(backend).encode()))

    def devices(self) -> list[FoundDevice]:
        """Return the GPUs that backends find; loads these the first time."""
        if self._devices is None:
            if self._is_split:
                for backend in libraries.backends(self._where):
                    self._load(backend)  # one whose driver is not here finds nothing
            found = map(self._describe, range(self._registry.ggml_backend_dev_count()))
            self._devices = [each for each in found if each]
        return self._devices

    def _describe(self, index: int) -> FoundDevice | None:
        handle = self._registry.ggml_backend_dev_get(index)
        kind = _KINDS.get(self.base.ggml_backend_dev_type(handle))
        if kind is None:
            return None
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.base.ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
        name = self.base.ggml_backend_dev_name(handle).decode(errors="replace")
        description = self.base.ggml_backend_dev_description(handle).decode(errors="replace")
        return FoundDevice(name, description, kind, free.value, total.value, handle)

    def add_servers(self, endpoints: Sequence[str]) -> list[str]:
        """Count what llama.cpp's own servers have among the devices; return the devices' names.

        Args:
            endpoints: ``host:port`` of each. They must answer: the library ends the process
                otherwise.

        Raises:
            UserError: these libraries have no client of such servers.
        """
        rpc = ctypes.CDLL(str(libraries.required("ggml-rpc", self._where)))
        rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
        names: list[str] = []
        for endpoint in endpoints:
            found = rpc.ggml_backend_rpc_add_server(endpoint.encode())
            self._registry.ggml_backend_register(found)
            for index in range(self.base.ggml_backend_reg_dev_count(found)):
                device = self.base.ggml_backend_reg_dev_get(found, index)
                names.append(self.base.ggml_backend_dev_name(device).decode())
        self._devices = None
        return names

    def device_list(self, names: str) -> Any:
        """Return the list of devices that llama.cpp takes, or an empty one for no name.

        ``names``: with commas between them.

        Raises:
            UserError: there is no such device any more.
        """
        wanted = names.split(",") if names else []
        handles = {each.name: each.handle for each in self.devices()} if names else {}
        for name in wanted:
            if name not in handles:
                raise UserError(f"there is no GPU {name} here any more; see: p2pinfer peers --why")
        return (ctypes.c_void_p * (len(wanted) + 1))(*(handles[name] for name in wanted), None)

    def read(self, tensor: int, size: int) -> bytes:
        """Return a tensor's first bytes, from whatever memory holds them."""
        if size != len(self._into):  # else the one of the decode before will do
            self._into = ctypes.create_string_buffer(size)
        self._get(tensor, self._into, 0, size)
        return self._into.raw

    def write(self, tensor: int, source: int, size: int) -> None:
        """Fill a tensor's first bytes from an address of this process."""
        self.base.ggml_backend_tensor_set(tensor, source, 0, size)
