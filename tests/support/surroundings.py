"""What surrounds the processes of tests: nobody, though other runs may be on the same network."""

from typing import Final

NOT_LOOKING: Final = {
    "P2PINFER_MDNS": "false",
    "P2PINFER_DHT": "false",
    "P2PINFER_MAP": "false",
    "P2PINFER_THREADS": "1",
    "P2PINFER_GPU": "off",
}
"""Variables of a process that finds only the peers whose addresses it is given, and asks no router
for a port. On the CPU and with one thread it computes as the reference does, whatever there is."""
