"""The protocols by which routers are asked, against miniupnpd: what many of them run."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.natlab.hosts import Host
from tests.support.natlab.internet import Internet
from tests.support.natlab.routers import wait_until

ROUTER, OUTSIDE, INSIDE = "10.1.0.1", "5.9.5.11", "10.1.0.2"
SOON_S = 20.0

TABLES = """
table inet filter {
  chain forward { type filter hook forward priority 0; jump miniupnpd; }
  chain miniupnpd { }
  chain prerouting { type nat hook prerouting priority -100; jump prerouting_miniupnpd; }
  chain postrouting { type nat hook postrouting priority 100; jump postrouting_miniupnpd; }
  chain prerouting_miniupnpd { }
  chain postrouting_miniupnpd { }
}
"""
"""What its package sets up in nftables."""

SETTINGS = """
ext_ifname=wan0
ext_ip={outside}
listening_ip=eth0
port=5555
enable_natpmp=yes
enable_upnp=yes
secure_mode=yes
uuid=00000000-0000-0000-0000-000000000001
allow 1024-65535 0.0.0.0/0 1024-65535
"""


def program(name: str) -> str:
    """Return where a program of administrators is; skips the test where it is not."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if not found:
        pytest.skip(f"{name} is not installed: apt-get install miniupnpd-nftables nftables")
    return found


def start_router(host: Host, folder: Path) -> None:
    """Have a host be a router that runs miniupnpd."""
    nft, daemon = program("nft"), program("miniupnpd")
    host.configure(
        "tuntap add dev wan0 mode tun", f"address add {OUTSIDE}/24 dev wan0", "link set wan0 up"
    )
    host.run([nft, "-f", "-"], input=TABLES, text=True, check=True)
    settings = folder / "miniupnpd.conf"
    settings.write_text(SETTINGS.format(outside=OUTSIDE))
    with (folder / "miniupnpd.log").open("wb") as log:
        words = [daemon, "-d", "-f", str(settings), "-P", str(folder / "miniupnpd.pid")]
        host.popen(words, stdout=log, stderr=subprocess.STDOUT)
    log_file = folder / "miniupnpd.log"
    assert wait_until(lambda: b"HTTP listening" in log_file.read_bytes(), SOON_S), (
        log_file.read_text()
    )


def test_each_protocol_opens_and_closes_the_port(internet: Internet, tmp_path: Path) -> None:
    """The kernel's own rules show it."""
    home = internet.nat("home", OUTSIDE, inner=ROUTER)
    router = internet.host("router", ROUTER, behind=home)
    start_router(router, tmp_path)
    laptop = internet.host("laptop", INSIDE, behind=home)
    asker = laptop.python(
        "tests.support.natlab.ask_router",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert asker.stdout is not None

    def is_open() -> bool:
        rules = router.run([program("nft"), "list", "ruleset"], capture_output=True, text=True)
        return f"dnat ip to {INSIDE}:4001" in rules.stdout

    def go_on() -> None:
        assert asker.stdin is not None
        asker.stdin.write("\n")
        asker.stdin.flush()

    for way in ("PCP", "NAT-PMP", "UPnP"):
        assert json.loads(asker.stdout.readline()) == {
            "way": way,
            "address": f"/ip4/{OUTSIDE}/tcp/4001",
            "lease_s": 3600,
            "is_lost": False,
            "is_same_again": True,
        }
        assert is_open()
        go_on()
        assert asker.stdout.readline() == "closed\n"
        assert not is_open()
        go_on()
    assert asker.wait(SOON_S) == 0
