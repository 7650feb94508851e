"""Simulated swarms: the production roles on a virtual network and clock."""
