"""A private network: a peer without its key cannot complete a handshake, and learns no peer's id.

The key goes into the Noise handshake itself, by Noise's own pattern for that: XXpsk0. Each side
proves in its first message that it has the key, over that handshake's fresh keys, so that a
recording is useless; afterwards the cipher is the usual one, and our muxer as fast. The
protocol's name differs, so that a stranger learns at once that it speaks no known protocol.
"""

from libp2p.custom_types import TProtocol
from libp2p.security.noise.patterns import PatternXX
from libp2p.security.noise.transport import Transport as Noise
from noise.connection import NoiseConnection  # type: ignore[import-untyped]  # it ships no types

PRIVATE_NOISE_ID = TProtocol("/p2pinfer/noise-xxpsk0/1")


class _PatternXXpsk0(PatternXX):
    """libp2p's handshake with a key mixed in from its first message."""

    key: bytes

    def create_noise_state(self, prologue: bytes | None = None) -> NoiseConnection:
        """Prepare a handshake."""
        state = super().create_noise_state(prologue)
        state.set_psks(self.key)
        return state


class PrivateNoise(Noise):
    """Noise for peers that share a key."""

    key: bytes

    def get_pattern(self) -> _PatternXXpsk0:
        """Prepare the handshake of one connection."""
        pattern = _PatternXXpsk0(self.local_peer, self.libp2p_privkey, self.noise_privkey)
        pattern.protocol_name = b"Noise_XXpsk0_25519_ChaChaPoly_SHA256"
        pattern.key = self.key
        return pattern
