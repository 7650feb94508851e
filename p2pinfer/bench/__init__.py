"""Measurements of p2pinfer on this machine, each a function that returns its figures."""
