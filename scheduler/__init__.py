"""Decisions as plain functions of values: which chain of peers to take."""
