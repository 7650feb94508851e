"""The transport on libp2p: the only package that imports it."""
