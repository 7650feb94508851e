"""What surrounds the processes of tests: nobody, though other runs may be on the same network."""

from typing import Final

NOT_LOOKING: Final = {"P2PINFER_MDNS": "false", "P2PINFER_DHT": "false"}
"""Variables of a process that finds only the peers whose addresses it is given."""
