"""p2pinfer: a peer-to-peer swarm of ordinary machines that runs one quantised language model.

``p2pinfer.connect`` joins a swarm from Python; see ``p2pinfer.client.joining``.
"""

from typing import TYPE_CHECKING

__all__ = ["connect"]

if TYPE_CHECKING:
    from p2pinfer.client.joining import connect
else:

    def __getattr__(name: str) -> object:
        """Load the library once it is asked for: every command imports this file first."""
        if name != "connect":
            raise AttributeError(f"module 'p2pinfer' has no attribute {name!r}")
        from p2pinfer.client.joining import connect

        return connect
