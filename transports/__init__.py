"""Carrying messages between peers: libp2p on a network, memory in tests and simulations."""
