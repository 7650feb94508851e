"""IPv4 packets whose ends can be rewritten, as a NAT does, and IPv6 packets, which none does."""

import struct
from typing import Final

ICMP, TCP, UDP = 1, 6, 17
FIN, SYN, RST, ACK = 1, 2, 4, 16

_CHECKSUM_AT: Final = {TCP: 16, UDP: 6, ICMP: 2}
_HEADER: Final = struct.Struct(">BBHHHBBH4s4s")

Endpoint = tuple[bytes, int]
"""An IP address of four or sixteen bytes, and a port or an ICMP identifier."""


class Packet:
    """A packet of TCP, UDP or ICMP echo; its checksums follow what is rewritten."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.is_ipv6 = data[0] >> 4 == 6
        self.header = 40 if self.is_ipv6 else (data[0] & 15) * 4
        self.protocol = data[6] if self.is_ipv6 else data[9]

    @staticmethod
    def parse(data: bytes) -> "Packet | None":
        """Read what a host sends; None for what no NAT of the lab knows how to handle."""
        if len(data) >= 48 and data[0] >> 4 == 6:  # but its hello on every new interface
            return Packet(data) if data[6] in (TCP, UDP) and data[24] != 0xFF else None
        if len(data) < 28 or data[0] >> 4 != 4:
            return None
        packet = Packet(data)
        if int.from_bytes(data[6:8], "big") & 0x1FFF:
            return None  # a later fragment has no ports; nobody sends any at the lab's MTU
        if packet.protocol == ICMP and data[packet.header] not in (0, 8):
            return None
        return packet if packet.protocol in (ICMP, TCP, UDP) else None

    @property
    def source(self) -> Endpoint:
        """Who sends it."""
        return self._get(0)

    @source.setter
    def source(self, endpoint: Endpoint) -> None:
        self._set(0, endpoint)

    @property
    def destination(self) -> Endpoint:
        """Who is to get it."""
        return self._get(1)

    @destination.setter
    def destination(self, endpoint: Endpoint) -> None:
        self._set(1, endpoint)

    @property
    def is_multicast(self) -> bool:
        """Whether everybody of the sender's network is to get it."""
        to = self.destination[0]
        return not self.is_ipv6 and (to[0] >> 4 == 14 or to == b"\xff\xff\xff\xff")

    @property
    def flags(self) -> int:
        """Of TCP."""
        return self.data[self.header + 13] if self.protocol == TCP else 0

    @property
    def body(self) -> bytes:
        """What a UDP packet says."""
        return bytes(self.data[self.header + 8 :])

    def copy(self) -> "Packet":
        """Return another one like this."""
        return Packet(bytes(self.data))

    def reply(self, body: bytes) -> "Packet":
        """Return the UDP packet that answers a UDP packet."""
        (there, far), (here, near) = self.source, self.destination
        udp = struct.pack(">HHHH", near, far, 8 + len(body), 0) + body  # without a checksum
        return Packet(_header(UDP, here, there, len(udp)) + udp)

    def refusal(self) -> "Packet":
        """Return the RST that answers a TCP packet."""
        (there, far), (here, near) = self.source, self.destination
        at = self.header
        number = int.from_bytes(self.data[at + 4 : at + 8], "big")
        size = len(self.data) - at - (self.data[at + 12] >> 4) * 4
        size += bool(self.flags & SYN) + bool(self.flags & FIN)
        acknowledged = (number + size) & 0xFFFFFFFF
        tcp = struct.pack(">HHIIBBHHH", near, far, 0, acknowledged, 5 << 4, RST | ACK, 0, 0, 0)
        pseudo = here + there + struct.pack(">BBH", 0, TCP, len(tcp))
        tcp = tcp[:16] + checksum(pseudo + tcp) + tcp[18:]
        return Packet(_header(TCP, here, there, len(tcp)) + tcp)

    def _place(self, which: int) -> tuple[int, int]:
        """Return where an address and its port are: 0 the source's, 1 the destination's."""
        port = 4 if self.protocol == ICMP else 2 * which
        address = 8 + 16 * which if self.is_ipv6 else 12 + 4 * which
        return address, self.header + port

    def _get(self, which: int) -> Endpoint:
        address, port = self._place(which)
        number = int.from_bytes(self.data[port : port + 2], "big")
        return bytes(self.data[address : address + (16 if self.is_ipv6 else 4)]), number

    def _set(self, which: int, endpoint: Endpoint) -> None:
        assert not self.is_ipv6, "nobody translates it"
        address, port = self._place(which)
        before = bytes(self.data[address : address + 4]), bytes(self.data[port : port + 2])
        after = endpoint[0], endpoint[1].to_bytes(2, "big")
        self.data[address : address + 4], self.data[port : port + 2] = after
        self._fix(10, before[0], after[0])
        check = self.header + _CHECKSUM_AT[self.protocol]
        if self.protocol == UDP and not any(self.data[check : check + 2]):
            return  # it has none
        if self.protocol != ICMP:  # whose checksum covers no addresses
            self._fix(check, before[0], after[0])
        self._fix(check, before[1], after[1])

    def _fix(self, at: int, before: bytes, after: bytes) -> None:
        """Bring a checksum up to date (RFC 1624)."""
        total = ~int.from_bytes(self.data[at : at + 2], "big") & 0xFFFF
        for i in range(0, len(before), 2):
            total += ~int.from_bytes(before[i : i + 2], "big") & 0xFFFF
            total += int.from_bytes(after[i : i + 2], "big")
        self.data[at : at + 2] = (~_folded(total) & 0xFFFF).to_bytes(2, "big")


def _header(protocol: int, source: bytes, destination: bytes, body_bytes: int) -> bytes:
    size = _HEADER.size + body_bytes
    head = _HEADER.pack(0x45, 0, size, 0, 0, 64, protocol, 0, source, destination)
    return head[:10] + checksum(head) + head[12:]


def checksum(data: bytes) -> bytes:
    """Return the Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total = _folded(sum(struct.unpack(f">{len(data) // 2}H", data)))
    return (~total & 0xFFFF).to_bytes(2, "big")


def _folded(total: int) -> int:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
