"""A chain of processes that run a model's slices and hand rows on: a swarm without our code around.

One process stands for each peer, one for each engine, and this one for the requester, on the same
kinds of sockets as a local swarm's: TCP between peers, socket pairs to engines. Each waits in
``recv``. An engine runs its slice in llama.cpp as a peer's does, and answers with the row; all else
only pass it on: there is no message around it, no encryption, and nothing is checked or kept. So
a program that keeps a peer and its engine in two processes can hardly be faster.

Where asked, peers and the requester wait in trio instead, and encrypt between each other as libp2p
does: what a program in Python that awaits and encrypts can hardly be faster than.
"""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import trio
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from numpy.typing import NDArray

from p2pinfer.core.errors import P2pinferError
from p2pinfer.core.limits import BLOCK_ROWS
from p2pinfer.core.python_process import python_command, python_environment
from p2pinfer.engine.llama.binding import Settings, Slice, Span
from p2pinfer.engine.llama.process import HUGE_PAGES

RECEIVE_BYTES = 1 << 16

TIME_BYTES = 8
"""At the start of each message: the nanoseconds that all engines together have computed for."""

TAG_BYTES = 16
_KEY, _NONCE = bytes(32), bytes(12)
"""Nothing here is secret: only what encrypting costs is wanted."""

END_S_MAX = 5.0
"""For a process to end after its socket has closed."""


@dataclass(frozen=True)
class BareRun:
    """What a run of tokens took round the chain."""

    seconds: float
    engine_s: float
    """Of them, what the engines computed."""


@dataclass(frozen=True)
class BareChain:
    """The slices of a chain, and what is asked of it."""

    ends: tuple[Path, Path]
    """The requester's first and last layers."""
    stages: Sequence[Path]
    settings: Settings
    prompt: int
    """Positions before the first token; what is in their cells makes no difference to the time."""
    tokens: int
    """In each run."""
    width: int
    encrypts: bool = False
    """Peers and the requester wait in trio, and encrypt what passes between them."""


@contextmanager
def open_bare_chain(chain: BareChain) -> Iterator[Callable[[], BareRun]]:
    """Run the chain while the block lasts; yields what sends a run of tokens round it."""
    size = TIME_BYTES + 4 * chain.width
    asked = {
        "settings": asdict(chain.settings),
        "prompt": chain.prompt,
        "tokens": chain.tokens,
        "encrypts": chain.encrypts,
    }
    with ExitStack() as stack:

        def start(sockets: Sequence[socket.socket], *slices: Path) -> None:
            files = [each.fileno() for each in sockets]
            paths = [str(each) for each in slices]
            words = json.dumps({"size": size, "files": files, "paths": paths, **asked})
            command = python_command("p2pinfer.bench.bare_hops", words)
            # As engines of peers are started.
            environment = {"GLIBC_TUNABLES": HUGE_PAGES, **python_environment()}
            process = subprocess.Popen(
                command, pass_fds=files, env=environment, stderr=subprocess.DEVNULL
            )
            stack.callback(process.wait, END_S_MAX)
            for each in sockets:
                each.close()

        def start_engine(*slices: Path) -> socket.socket:
            engine, its_end = socket.socketpair()
            start([its_end], *slices)
            _whole(engine, 1)  # it is loaded
            return engine

        engine = start_engine(*reversed(chain.ends))
        first, link = _tcp()
        for path in chain.stages:
            behind, next_link = _tcp()
            start([link, start_engine(path), behind])
            link = next_link
        for each in (engine, first, link):  # closed first: then the others end one by one
            stack.enter_context(each)

        def run() -> BareRun:
            message = bytes(size)
            started = time.perf_counter()
            for _ in range(chain.tokens):
                engine.sendall(message)
                first.sendall(_whole(engine, size))
                message = _whole(link, size)
            took = time.perf_counter() - started
            return BareRun(took, int.from_bytes(message[:TIME_BYTES], "little") / 1e9)

        async def run_awaiting() -> BareRun:
            node = _Awaiting(size, engine, behind=first, before=link)
            message = bytes(size)
            started = time.perf_counter()
            for _ in range(chain.tokens):
                await node.hand_on(message)
                message = await node.take()
            took = time.perf_counter() - started
            return BareRun(took, int.from_bytes(message[:TIME_BYTES], "little") / 1e9)

        yield partial(trio.run, run_awaiting) if chain.encrypts else run


def _tcp() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    for each in (near, far):
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def _whole(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(RECEIVE_BYTES)
        if not more:
            raise P2pinferError("a process of the bare chain has ended")
        data += more
    return data


class _Awaiting:
    """The node of a peer, or of the requester, that waits in trio and encrypts for other nodes."""

    def __init__(
        self, size: int, engine: socket.socket, *, behind: socket.socket, before: socket.socket
    ) -> None:
        sockets = map(trio.socket.from_stdlib_socket, (engine, behind, before))
        self._engine, self._behind, self._before = map(trio.SocketStream, sockets)
        self._size, self._cipher = size, ChaCha20Poly1305(_KEY)

    async def take(self) -> bytes:
        """Receive a message from the node before this one."""
        data = await _awaited(self._before, self._size + TAG_BYTES)
        return self._cipher.decrypt(_NONCE, data, None)

    async def hand_on(self, message: bytes) -> None:
        """Have the engine compute, and send the node behind what it answers."""
        await self._engine.send_all(message)
        answer = await _awaited(self._engine, self._size)
        await self._behind.send_all(self._cipher.encrypt(_NONCE, answer, None))

    async def serve(self) -> None:
        """Hand on all that comes."""
        while True:
            await self.hand_on(await self.take())


async def _awaited(stream: trio.SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await stream.receive_some(RECEIVE_BYTES)
        if not more:
            raise P2pinferError("a process of the bare chain has ended")
        data += more
    return data


class _Engine:
    """What one process runs: a stage's slice, or the requester's last layers and then its first."""

    def __init__(self, paths: Sequence[str], settings: Settings, prompt: int, tokens: int) -> None:
        self._tokens, self._done = tokens, 0
        self._parts = [
            Slice(
                Path(path),
                logits=len(paths) > 1 and path == paths[0],
                settings=settings,
                sessions=1,
                context=prompt + tokens,
            )
            for path in paths
        ]
        # A state only begins again, and costs the same wherever it is.
        self._start = 0 if self._parts[0].keeps_state else prompt
        for part in self._parts:
            takes_tokens = len(paths) > 1 and part is not self._parts[0]
            shape, kind = ((), np.int32) if takes_tokens else ((part.width,), np.float32)
            for at in range(0, self._start, BLOCK_ROWS):
                rows = np.zeros((min(BLOCK_ROWS, self._start - at), *shape), kind)
                part.decode([Span(0, at, rows, outputs=False)])

    def answer(self, row: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the row behind a stage, or the row that the token begins with which is drawn."""
        position = self._start + self._done % self._tokens
        self._done += 1
        found = row.reshape(1, -1)
        for part in self._parts:
            (found,) = part.decode([Span(0, position, found)])
            if found.shape[-1] != row.size:  # the vocabulary's
                found = np.array([found.argmax()], np.int32)
        return found


def main() -> None:
    """Be one process of the chain, until its neighbour ends."""
    asked = json.loads(sys.argv[1])
    size, paths = asked["size"], asked["paths"]
    before, *others = [socket.socket(fileno=each) for each in asked["files"]]
    try:
        if paths:
            settings = Settings(**asked["settings"])
            engine = _Engine(paths, settings, asked["prompt"], asked["tokens"])
            before.sendall(b"\0")
        while paths:
            message = _whole(before, size)
            started = time.perf_counter_ns()
            row = engine.answer(np.frombuffer(message, np.float32, offset=TIME_BYTES))
            ns = int.from_bytes(message[:TIME_BYTES], "little")
            ns += time.perf_counter_ns() - started
            before.sendall(ns.to_bytes(TIME_BYTES, "little") + row.tobytes())
        engines, behind = others
        if asked["encrypts"]:
            trio.run(_Awaiting(size, engines, behind=behind, before=before).serve)
        while True:
            engines.sendall(_whole(before, size))
            behind.sendall(_whole(engines, size))
    except (P2pinferError, ConnectionError, trio.BrokenResourceError):
        pass


if __name__ == "__main__":
    main()
