"""A chain of processes that only hand a row on: what is left of a boundary without our code.

One process stands for each peer, one for each engine, and this one for the requester, on the same
kinds of sockets as a local swarm's: TCP between peers, socket pairs to engines. Each waits in
``recv`` and does nothing else, but that an engine reads as much memory as its slice's weights take
before it answers, so that all run with cold caches, as they do beside llama.cpp. What is left no
program can save that keeps a peer and its engine in two processes.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np

from p2pinfer.core.python_process import python_command, python_environment

READ_BYTES_MAX = 256 << 20
"""Of memory that one engine reads: more than processors' caches hold."""

RECEIVE_BYTES = 1 << 16

TIME_BYTES = 8
"""At the start of each message: the nanoseconds that all engines together have read for."""

END_S_MAX = 5.0
"""For a process to end after its socket has closed."""


@contextmanager
def open_bare_chain(weights: Sequence[int], size: int) -> Iterator[Callable[[int], float]]:
    """Run the chain while the block lasts; yields what sends messages round it.

    That is told how many, and returns the seconds that all hops took, without the engines' reads.

    Args:
        weights: bytes that each engine reads: the requester's own, then each peer's.
        size: bytes of a message, at least ``TIME_BYTES``.
    """
    with ExitStack() as stack:

        def start(role: str, sockets: Sequence[socket.socket], read_bytes: int = 0) -> None:
            files = [each.fileno() for each in sockets]
            words = [str(each) for each in (size, read_bytes, *files)]
            command = python_command("p2pinfer.bench.bare_hops", role, *words)
            process = subprocess.Popen(command, pass_fds=files, env=python_environment())
            stack.callback(process.wait, END_S_MAX)
            for each in sockets:
                each.close()

        engine, its_end = socket.socketpair()
        start("engine", [its_end], weights[0])
        first, link = _tcp()
        for read_bytes in weights[1:]:
            peers_end, its_end = socket.socketpair()
            behind, next_link = _tcp()
            start("engine", [its_end], read_bytes)
            start("peer", [link, peers_end, behind])
            link = next_link
        for each in (engine, first, link):  # closed first: then the others end one by one
            stack.enter_context(each)

        def seconds(messages: int) -> float:
            message = bytes(size)
            started = time.perf_counter()
            for _ in range(messages):
                engine.sendall(message)
                first.sendall(_whole(engine, size))
                message = _whole(link, size)
            took = time.perf_counter() - started
            return took - int.from_bytes(message[:TIME_BYTES], "little") / 1e9

        yield seconds


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
            raise EOFError("a process of the bare chain has ended")
        data += more
    return data


def main() -> None:
    """Be one process of the chain, until its neighbour ends."""
    role, (size, read_bytes, *files) = sys.argv[1], map(int, sys.argv[2:])
    before, *others = [socket.socket(fileno=each) for each in files]
    memory = np.ones(min(read_bytes, READ_BYTES_MAX) // 8, np.uint64)
    try:
        while role == "engine":
            message = _whole(before, size)
            started = time.perf_counter_ns()
            memory.sum()
            read_ns = int.from_bytes(message[:TIME_BYTES], "little")
            read_ns += time.perf_counter_ns() - started
            before.sendall(read_ns.to_bytes(TIME_BYTES, "little") + message[TIME_BYTES:])
        engine, behind = others
        while True:
            engine.sendall(_whole(before, size))
            behind.sendall(_whole(engine, size))
    except (EOFError, ConnectionError):
        pass


if __name__ == "__main__":
    main()
