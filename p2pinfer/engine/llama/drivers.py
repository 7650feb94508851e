"""Versions of the drivers of GPUs: with another one, a GPU may compute other bits."""

import ctypes
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

_VULKAN_NAMES: Final = ("libvulkan.so.1", "libvulkan.1.dylib", "libMoltenVK.dylib")
_PROPERTIES_BYTES = 1024
"""``VkPhysicalDeviceProperties`` has 824."""
_CACHE_UUID = slice(276, 292)
"""``pipelineCacheUUID``: a driver changes it whenever it compiles shaders in another way."""


def driver_of(device: str, root: Path = Path("/")) -> str:
    """Return the version of a device's driver as its system gives it.

    Args:
        device: as ggml names it.
        root: of the file system.
    """
    kind = device.rstrip("0123456789").lower()
    if kind == "vulkan":
        return vulkan_drivers()
    if kind in ("mtl", "metal"):
        return f"macOS {platform.mac_ver()[0]}"
    module = {"cuda": "proc/driver/nvidia/version", "rocm": "sys/module/amdgpu/version"}.get(kind)
    with suppress(OSError):
        if module:
            return (root / module).read_text().splitlines()[0].strip()
    return f"{platform.system()} {platform.release()}"


class _InstanceCreateInfo(ctypes.Structure):
    """``VkInstanceCreateInfo``."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
        ("application", ctypes.c_void_p),
        ("layers", ctypes.c_uint32),
        ("layer_names", ctypes.c_void_p),
        ("extensions", ctypes.c_uint32),
        ("extension_names", ctypes.c_void_p),
    )


def vulkan_drivers() -> str:
    """Return the drivers' versions and caches' identities of all Vulkan devices, in order."""
    vulkan = _vulkan()
    if vulkan is None:
        return "no Vulkan"
    create_info = _InstanceCreateInfo(type=1)
    instance = ctypes.c_void_p()
    if vulkan.vkCreateInstance(ctypes.byref(create_info), None, ctypes.byref(instance)):
        return "no Vulkan instance"
    try:
        count = ctypes.c_uint32()
        vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
        devices = (ctypes.c_void_p * count.value)()
        vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), devices)
        return " ".join(_version(vulkan, device) for device in devices if device)
    finally:
        vulkan.vkDestroyInstance(instance, None)


def _vulkan() -> Any:
    for name in _VULKAN_NAMES:
        with suppress(OSError):
            vulkan = ctypes.CDLL(name)
            vulkan.vkEnumeratePhysicalDevices.argtypes = [ctypes.c_void_p] * 3
            vulkan.vkGetPhysicalDeviceProperties.argtypes = [ctypes.c_void_p] * 2
            vulkan.vkDestroyInstance.argtypes = [ctypes.c_void_p] * 2
            return vulkan
    return None


def _version(vulkan: Any, device: int) -> str:
    properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
    vulkan.vkGetPhysicalDeviceProperties(device, properties)
    interface, driver = (int.from_bytes(properties.raw[i : i + 4], "little") for i in (0, 4))
    return f"{interface:08x}-{driver:08x}-{properties.raw[_CACHE_UUID].hex()}"
