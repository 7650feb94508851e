"""Versions of the drivers of GPUs: with another one, a GPU may compute other bits."""

import ctypes
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

_VULKAN_NAMES: Final = ("libvulkan.so.1", "libvulkan.1.dylib", "libMoltenVK.dylib")
_APPLICATION, _INSTANCE = 0, 1
_PROPERTIES, _DRIVER = 1_000_059_001, 1_000_196_000
"""``VkStructureType``."""
_VERSION_1_1 = 1 << 22 | 1 << 12


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


class _ApplicationInfo(ctypes.Structure):
    """``VkApplicationInfo``."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("version", ctypes.c_uint32),
        ("engine", ctypes.c_char_p),
        ("engine_version", ctypes.c_uint32),
        ("interface", ctypes.c_uint32),
    )


class _InstanceCreateInfo(ctypes.Structure):
    """``VkInstanceCreateInfo``."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
        ("application", ctypes.POINTER(_ApplicationInfo)),
        ("layers", ctypes.c_uint32),
        ("layer_names", ctypes.c_void_p),
        ("extensions", ctypes.c_uint32),
        ("extension_names", ctypes.c_void_p),
    )


class _Driver(ctypes.Structure):
    """``VkPhysicalDeviceDriverProperties``."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("id", ctypes.c_int),
        ("name", ctypes.c_char * 256),
        ("info", ctypes.c_char * 256),
        ("conformance", ctypes.c_uint8 * 4),
    )


class _Properties(ctypes.Structure):
    """``VkPhysicalDeviceProperties2``: of the 824 bytes inside, only the first are named."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("next", ctypes.POINTER(_Driver)),
        ("interface", ctypes.c_uint32),
        ("driver", ctypes.c_uint32),
        ("vendor", ctypes.c_uint32),
        ("device", ctypes.c_uint32),
        ("rest", ctypes.c_uint64 * 128),
    )


def vulkan_drivers() -> str:
    """Return the drivers of all Vulkan devices with their versions, in order."""
    vulkan = _vulkan()
    if vulkan is None:
        return "no Vulkan"
    application = _ApplicationInfo(type=_APPLICATION, interface=_VERSION_1_1)
    create_info = _InstanceCreateInfo(type=_INSTANCE, application=ctypes.pointer(application))
    instance = ctypes.c_void_p()
    if vulkan.vkCreateInstance(ctypes.byref(create_info), None, ctypes.byref(instance)):
        return "no Vulkan instance"
    try:
        count = ctypes.c_uint32()
        vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
        devices = (ctypes.c_void_p * count.value)()
        vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), devices)
        return "; ".join(_version(vulkan, device) for device in devices if device)
    finally:
        vulkan.vkDestroyInstance(instance, None)


def _vulkan() -> Any:
    for name in _VULKAN_NAMES:
        with suppress(OSError, AttributeError):  # none here, or one without Vulkan 1.1
            vulkan = ctypes.CDLL(name)
            vulkan.vkEnumeratePhysicalDevices.argtypes = [ctypes.c_void_p] * 3
            vulkan.vkGetPhysicalDeviceProperties2.argtypes = [ctypes.c_void_p] * 2
            vulkan.vkDestroyInstance.argtypes = [ctypes.c_void_p] * 2
            return vulkan
    return None


def _version(vulkan: Any, device: int) -> str:
    driver = _Driver(type=_DRIVER)
    properties = _Properties(type=_PROPERTIES, next=ctypes.pointer(driver))
    vulkan.vkGetPhysicalDeviceProperties2(device, ctypes.byref(properties))
    name, info = (text.decode(errors="replace") for text in (driver.name, driver.info))
    return f"{name} {info} {properties.driver:x}".strip()
