"""Ports that a home router passes on to this machine because it was asked to."""
