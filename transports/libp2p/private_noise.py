"""A private network: a peer without its key cannot complete a handshake, and learns no peer's id.

The key goes into the Noise handshake itself, by Noise's own pattern for that: XXpsk0. Each side
proves in its first message that it has the key, over that handshake's fresh keys, so that a
recording is useless; afterwards the cipher is the usual one, and our muxer as fast. The
protocol's name differs, so that a stranger learns at once that it speaks no known protocol.

In a network of founders each side goes on to prove that it is a member in this epoch, by a
signature over both peer ids and the hash of this very handshake: who has the key and was expelled
gets no further, and neither does a proof that was shown on another connection.
"""

from libp2p.abc import IRawConnection, ISecureConn
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.noise.patterns import PatternXX
from libp2p.security.noise.transport import Transport as Noise
from noise.connection import NoiseConnection  # type: ignore[import-untyped]  # it ships no types

from p2pinfer.core.ids import PeerId
from transports.base import Gatekeeper
from transports.membership import PROOF_BYTES_MAX, NotAMemberError

PRIVATE_NOISE_ID = TProtocol("/p2pinfer/noise-xxpsk0/1")
MEMBER_NOISE_ID = TProtocol("/p2pinfer/noise-members/1")


class _PatternXXpsk0(PatternXX):
    """libp2p's handshake with a key mixed in from its first message."""

    key: bytes
    state: NoiseConnection

    def create_noise_state(self, prologue: bytes | None = None) -> NoiseConnection:
        """Prepare a handshake."""
        self.state = super().create_noise_state(prologue)
        self.state.set_psks(self.key)
        return self.state


class PrivateNoise(Noise):
    """Noise for peers that share a key."""

    key: bytes

    def get_pattern(self) -> _PatternXXpsk0:
        """Prepare the handshake of one connection."""
        pattern = _PatternXXpsk0(self.local_peer, self.libp2p_privkey, self.noise_privkey)
        pattern.protocol_name = b"Noise_XXpsk0_25519_ChaChaPoly_SHA256"
        pattern.key = self.key
        return pattern


class MemberNoise(PrivateNoise):
    """Noise for the members of a network of founders."""

    members: Gatekeeper

    async def secure_inbound(self, conn: IRawConnection) -> ISecureConn:
        """Shake hands with a member that called."""
        pattern = self.get_pattern()
        return await self._prove(await pattern.handshake_inbound(conn), pattern)

    async def secure_outbound(self, conn: IRawConnection, peer_id: ID) -> ISecureConn:
        """Shake hands with a member that is called."""
        pattern = self.get_pattern()
        return await self._prove(await pattern.handshake_outbound(conn, peer_id), pattern)

    async def _prove(self, session: ISecureConn, pattern: _PatternXXpsk0) -> ISecureConn:
        """Exchange proofs; raises HandshakeFailure if either side has none that holds."""
        binding = pattern.state.get_handshake_hash()
        me, other = PeerId(str(self.local_peer)), PeerId(str(session.get_remote_peer()))
        try:
            proof = self.members.prove(me, other, binding)
            await session.write(len(proof).to_bytes(2, "big") + proof)
            size = int.from_bytes(await session.read(2), "big")
            if size > PROOF_BYTES_MAX:
                raise NotAMemberError("its proof of membership is too long")
            self.members.admit(await session.read(size), other, me, binding)
        except NotAMemberError as error:
            raise HandshakeFailure(str(error)) from error
        return session
