"""How many bytes went through this process's connections with peers."""

from typing import Final


class Traffic:
    """Counts both directions, over all connections."""

    def __init__(self) -> None:
        self.sent = 0
        """Encrypted, with all framing."""
        self.received = 0
        """Decrypted: without the records' tags, which are under 1 %."""


TRAFFIC: Final = Traffic()
"""Of this process: it has one host, whose connections come and go."""
