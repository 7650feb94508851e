"""Serving layers: choosing them, admitting sessions, computing steps."""
