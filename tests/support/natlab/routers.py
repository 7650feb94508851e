"""What home routers answer at their inner address, beside the NAT-PMP of `Nat`: PCP and UPnP.

They open ports in the lab's NATs. `Pcp` is honest unless it is told not to be.
"""

import ipaddress
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

from tests.support.natlab.hosts import Host
from tests.support.natlab.nats import NAT_PMP_PORT, Nat
from tests.support.natlab.packets import TCP, Packet

SUCCESS, UNSUPPORTED_VERSION, NOT_AUTHORIZED, UNSUPPORTED_OPCODE = 0, 1, 2, 4
"""Results of PCP (RFC 6887, section 7.4)."""

TCP_PORT_HTTP = 49_152
"""Where an IGD describes itself."""


class Pcp:
    """A PCP server (RFC 6887) of a NAT; leases do not run out.

    Args:
        nat: opens its ports.
        refuses: it says that it is not allowed to.
        says: the outer address that it claims to have; None for the true one.
        picks: the outer port that it gives instead of the wanted one.
    """

    def __init__(
        self, nat: Nat, *, refuses: bool = False, says: str | None = None, picks: int | None = None
    ) -> None:
        self._nat, self.refuses, self.says, self.picks = nat, refuses, says, picks
        self.asked = 0
        self._nonces: dict[int, bytes] = {}
        """Of the outer ports."""
        nat.services[NAT_PMP_PORT] = self.answer

    def answer(self, packet: Packet) -> bytes | None:
        """Answer one request."""
        self.asked += 1
        asked = packet.body
        if len(asked) < 24 or asked[0] != 2:
            return struct.pack(">BBHI", 0, 128, UNSUPPORTED_VERSION, self._nat.uptime_s)
        opcode, lease_s = asked[1], int.from_bytes(asked[4:8], "big")

        def head(result: int) -> bytes:
            return struct.pack(
                ">BBBBII12x", 2, 128 | opcode, 0, result, lease_s, self._nat.uptime_s
            )

        if ipaddress.IPv6Address(asked[8:24]).ipv4_mapped != ipaddress.IPv4Address(
            packet.source[0]
        ):
            return head(12) + asked[24:]  # another NAT is between
        if opcode == 0:
            return head(SUCCESS)
        if opcode != 1 or len(asked) < 60:
            return head(UNSUPPORTED_OPCODE) + asked[24:]
        if self.refuses:
            return head(NOT_AUTHORIZED) + asked[24:]
        nonce, protocol, inner, wanted = struct.unpack(">12sB3xHH", asked[24:44])
        outer = self._open(socket.inet_ntoa(packet.source[0]), inner, wanted, nonce, lease_s)
        host = ipaddress.IPv4Address(self.says or self._nat.address).packed
        body = struct.pack(">12sB3xHH", nonce, protocol, inner, outer)
        return head(SUCCESS) + body + bytes(10) + b"\xff\xff" + host

    def _open(self, host: str, inner: int, wanted: int, nonce: bytes, lease_s: int) -> int:
        outer = self.picks or wanted or inner
        if not lease_s:
            if self._nonces.get(outer) == nonce:
                self._nat.unforward(outer)
            return outer
        while self._nat.forwards.get(outer, (host, inner)) != (host, inner):
            outer += 1
        self._nonces[outer] = nonce
        self._nat.forward(outer, (host, inner), TCP)
        return outer


_DESCRIPTION = """<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0"><specVersion><major>1</major><minor>0</minor>
</specVersion><device>
<deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType>
<friendlyName>lab</friendlyName><manufacturer>lab</manufacturer><modelName>lab</modelName>
<UDN>uuid:1</UDN><deviceList><device>
<deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType><UDN>uuid:2</UDN>
<deviceList><device>
<deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:1</deviceType><UDN>uuid:3</UDN>
<serviceList><service>
<serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>
<serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId>
<SCPDURL>/scpd.xml</SCPDURL><controlURL>{control}</controlURL><eventSubURL>/event</eventSubURL>
</service></serviceList></device></deviceList></device></deviceList></device></root>
"""

_ENVELOPE = (
    '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"'
    ' s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>{}</s:Body></s:Envelope>'
)


class Igd:
    """An Internet gateway device (UPnP), on a host that has its NAT's inner address.

    Args:
        host: where it listens.
        nat: opens its ports.
        control: the path or URL at which it says that it takes orders.
        only_permanent: it knows no leases, as old routers.
    """

    def __init__(
        self, host: Host, nat: Nat, *, control: str = "/control", only_permanent: bool = False
    ) -> None:
        self._host, self._nat, self._control = host, nat, control
        self._only_permanent = only_permanent
        self.orders: list[str] = []
        """The names of what it was told to do."""
        with host.entered():
            self._ssdp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._ssdp.bind(("0.0.0.0", 1900))
            group = socket.inet_aton("239.255.255.250") + socket.inet_aton(host.address)
            self._ssdp.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
            # Not an HTTPServer, which looks its own name up: nobody answers here.
            self._http = ThreadingTCPServer((host.address, TCP_PORT_HTTP), self._handler())
        self._threads = [
            threading.Thread(target=self._serve_ssdp, daemon=True),
            threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop, and wait."""
        self._http.shutdown()
        self._http.server_close()
        with self._host.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", (self._host.address, 1900))
        for thread in self._threads:
            thread.join()
        self._ssdp.close()

    def _serve_ssdp(self) -> None:
        place = f"http://{self._host.address}:{TCP_PORT_HTTP}/rootDesc.xml"
        while True:
            question, asker = self._ssdp.recvfrom(2048)
            if not question:
                return
            kind = re.search(rb"\nST: *(\S+)", question)
            if question.startswith(b"M-SEARCH") and kind and kind[1].endswith(b"Device:1"):
                lines = (
                    "HTTP/1.1 200 OK",
                    "CACHE-CONTROL: max-age=120",
                    f"ST: {kind[1].decode()}",
                    f"USN: uuid:1::{kind[1].decode()}",
                    "EXT:",
                    "SERVER: lab UPnP/1.1",
                    f"LOCATION: {place}",
                )
                self._ssdp.sendto("".join(f"{x}\r\n" for x in (*lines, "")).encode(), asker)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        igd = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(200, _DESCRIPTION.format(control=igd._control))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                action = self.headers["SOAPAction"].strip('"').rpartition("#")[2]
                values = dict(re.findall(r"<(New\w+)>([^<]*)</New", body))
                code, found = igd.order(action, values)
                if code:
                    fault = (
                        "<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError"
                        '</faultstring><detail><UPnPError xmlns="urn:schemas-upnp-org:control-1-0">'
                        f"<errorCode>{code}</errorCode><errorDescription>no</errorDescription>"
                        "</UPnPError></detail></s:Fault>"
                    )
                    self._send(500, _ENVELOPE.format(fault))
                    return
                inside = "".join(f"<{key}>{value}</{key}>" for key, value in found.items())
                kind = "urn:schemas-upnp-org:service:WANIPConnection:1"
                answer = f'<u:{action}Response xmlns:u="{kind}">{inside}</u:{action}Response>'
                self._send(200, _ENVELOPE.format(answer))

            def _send(self, code: int, text: str) -> None:
                body = text.encode()
                self.send_response(code)
                self.send_header("Content-Type", "text/xml")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def order(self, action: str, values: dict[str, str]) -> tuple[int, dict[str, str]]:
        """Do what a SOAP request says; return an error code of UPnP, or 0, and the answer."""
        self.orders.append(action)
        port = int(values.get("NewExternalPort") or 0)
        held = self._nat.forwards.get(port)
        if action == "GetExternalIPAddress":
            return 0, {"NewExternalIPAddress": self._nat.address}
        if action == "GetSpecificPortMappingEntry":
            if held is None:
                return 714, {}
            host, inner = held
            return 0, {
                "NewInternalPort": str(inner),
                "NewInternalClient": host,
                "NewEnabled": "1",
                "NewPortMappingDescription": "",
                "NewLeaseDuration": "0",
            }
        if action == "AddPortMapping":
            inside = values["NewInternalClient"], int(values["NewInternalPort"])
            if self._only_permanent and values["NewLeaseDuration"] != "0":
                return 725, {}
            if held not in (None, inside):
                return 718, {}
            self._nat.forward(port, inside)
            return 0, {}
        if action == "DeletePortMapping":
            self._nat.unforward(port)
            return (0 if held else 714), {}
        return 401, {}


def wait_until(true: Callable[[], Any], within_s: float) -> Any:
    """Look again and again, and return what is true at last, or the last that was not."""
    end = time.monotonic() + within_s
    while not (found := true()) and time.monotonic() < end:
        time.sleep(0.05)
    return found
