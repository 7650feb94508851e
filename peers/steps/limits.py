"""Waits and number formats that both ends of a session must agree on."""

CONNECT_S_MAX = 5.0
"""To reach the next peer: ten round trips on the longest path, including a handshake."""

OPEN_S_MAX = 15.0
"""From a channel's start until its first message, and for a stage to accept."""

ROW_TYPE = "<f4"
"""How numpy reads the numbers of rows."""
