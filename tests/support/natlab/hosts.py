"""Hosts: network namespaces of this machine, each with a TUN device for a network card.

A namespace is held by a descriptor of this process, and by what runs in it: it leaves no name
behind, and ends with them. A thread enters it for what it does in a ``with`` block: sockets that
it makes then, and processes that it starts, belong to the host for good.
"""

import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from tests.support.natlab.links import Link
from tests.support.natlab.nats import Nat
from tests.support.natlab.packets import Endpoint, Packet

MTU_BYTES = 1400

SEEN_MAX = 4096
"""Endpoints that a host's firewall remembers."""

ROOT: Final = Path(__file__).parents[3]

_TUN: Final = "/dev/net/tun"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_CLONE_NEWNET: Final = 0x40000000


def why_not() -> str:
    """Say why no host can be made on this machine; nothing if it can."""
    if sys.platform != "linux":
        return "network namespaces are of Linux"
    host = Host("probe", "10.0.0.1", None, Link())
    try:
        host.open()
    except FileNotFoundError as error:
        return f"there is no {error.filename} here"
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespace with a TUN device may be made here: {error}"
    finally:
        host.close()
    return ""


class Host:
    """A network namespace with one address, or one of each family."""

    def __init__(
        self,
        name: str,
        address: str,
        behind: Nat | None,
        link: Link,
        *,
        firewall: bool = False,
        address6: str = "",
    ) -> None:
        """Describe one; `open` makes it.

        Args:
            name: for people.
            address: its one address of IPv4.
            behind: the NAT whose network it is in, if any.
            link: what connects it.
            firewall: lets in only answers, though it translates nothing; what comes by IPv6 meets
                one in every home's router.
            address6: of IPv6, which all of the Internet knows.
        """
        self.name, self.address, self.behind, self.link = name, address, behind, link
        self.firewall, self.address6 = firewall, address6
        self.tun = -1
        self._namespace = -1
        self._processes: list[subprocess.Popen[Any]] = []
        self._sockets: list[socket.socket] = []
        self._seen: dict[tuple[Endpoint, Endpoint], None] = {}

    def open(self) -> None:
        """Make the namespace and its network card.

        Raises:
            OSError: this is not allowed here.
        """
        with _kept_namespace():
            _call("unshare", _CLONE_NEWNET)
            self._namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
            self.tun = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
            request = struct.pack("16sH22x", b"eth0", _IFF_TUN | _IFF_NO_PI)
            fcntl.ioctl(self.tun, _TUNSETIFF, request)
        self.configure("link set lo up", f"link set eth0 up mtu {MTU_BYTES} multicast on")
        self._take_address()

    def configure(self, *commands: str) -> None:
        """Run commands of iproute2 in the namespace."""
        self.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True)

    def move(self, address: str, behind: Nat | None) -> None:
        """Take another address in another network; use `Internet.move`."""
        self.address, self.behind = address, behind
        self.configure("address flush dev eth0 scope global")
        self._take_address()

    def sleep(self) -> None:
        """Lose the network, as a laptop that is shut or out of reach of its Wi-Fi."""
        self.configure("address flush dev eth0 scope global", "link set eth0 down")

    def wake(self) -> None:
        """Have it back."""
        self.configure("link set eth0 up")
        self._take_address()

    def _take_address(self) -> None:
        # A /24, as at home, and yet the packets to its neighbours go through the device, too.
        router = self.behind.inner if self.behind else ""
        via = f"via {router} onlink " if router not in ("", self.address) else ""
        six = f"address add {self.address6}/64 dev eth0 nodad", "route add 2000::/3 dev eth0"
        self.configure(
            f"address add {self.address}/24 dev eth0",
            f"route add default {via}dev eth0",
            *(six if self.address6 else ()),
        )

    @property
    def namespace(self) -> str:
        """A file that stands for the namespace, for `enter` in another process."""
        return f"/proc/{os.getpid()}/fd/{self._namespace}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Put this thread onto the host while the block lasts."""
        with _kept_namespace():
            _call("setns", self._namespace, _CLONE_NEWNET)
            yield

    def socket(self, kind: int = socket.SOCK_STREAM, port: int = 0) -> socket.socket:
        """Return a bound socket of this host; it is closed at the end."""
        with self.entered():
            made = socket.socket(socket.AF_INET, kind)
        self._sockets.append(made)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("0.0.0.0", port))
        return made

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program on this host; it and its children are killed at the end."""
        with self.entered():
            process = subprocess.Popen(command, process_group=0, **options)
        self._processes.append(process)
        return process

    def run(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run a program on this host to its end, as `subprocess.run` does."""
        check = options.pop("check", False)
        with self.entered():
            return subprocess.run(command, check=check, **options)

    def python(self, module: str, *words: str, **options: Any) -> subprocess.Popen[Any]:
        """Start a Python module of the tree on this host."""
        command = [sys.executable, "-m", module, *words]
        return self.popen(command, **{"cwd": ROOT, **options})

    def call(self, function: Callable[[], Any]) -> "Call":
        """Call a function in a thread of its own on this host; `Call.result` waits for it."""
        return Call(self, function)

    def sends(self, packet: Packet) -> None:
        """Note what leaves, for the firewall."""
        if self._is_guarded(packet):
            self._seen.pop(key := (packet.source, packet.destination), None)
            self._seen[key] = None
            if len(self._seen) > SEEN_MAX:
                del self._seen[next(iter(self._seen))]

    def takes(self, packet: Packet) -> bool:
        """Whether the firewall lets a packet in."""
        return not self._is_guarded(packet) or (packet.destination, packet.source) in self._seen

    def _is_guarded(self, packet: Packet) -> bool:
        return self.firewall or (packet.is_ipv6 and self.behind is not None)

    def close(self) -> None:
        """End what runs on the host, and take it away."""
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe:
                    with suppress(OSError):
                        pipe.close()
        for made in self._sockets:
            made.close()
        for descriptor in (self.tun, self._namespace):
            if descriptor != -1:
                os.close(descriptor)
        self.tun = self._namespace = -1


def enter(namespace: str) -> None:
    """Put this process, which has one thread yet, onto the host of `Host.namespace` for good."""
    found = os.open(namespace, os.O_RDONLY)
    _call("setns", found, _CLONE_NEWNET)
    os.close(found)


class Call:
    """A function that runs on a host, in a thread."""

    def __init__(self, host: Host, function: Callable[[], Any]) -> None:
        self._host, self._function = host, function
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=host.name, daemon=True)
        self._thread.start()

    def result(self, timeout_s: float = 60.0) -> Any:
        """Wait for what the function returns or raises.

        Raises:
            TimeoutError: it has not ended in time.
        """
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(f"{self._host.name} has not ended within {timeout_s:g} s")
        if self._error:
            raise self._error
        return self._value

    def _run(self) -> None:
        try:
            with self._host.entered():
                self._value = self._function()
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            self._error = error


@contextmanager
def _kept_namespace() -> Iterator[None]:
    """Bring this thread back to its network namespace when the block ends."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        yield
    finally:
        _call("setns", before, _CLONE_NEWNET)
        os.close(before)


def _call(name: str, *values: int) -> None:
    """Call a function of the C library that Python 3.11 lacks."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*values):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
