"""Decisions as pure functions of values: routes, placement, admission, fetching."""
