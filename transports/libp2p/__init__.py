"""The transport on libp2p: the one place that imports it."""
