"""Waits and number formats that both ends of a session must agree on."""

from p2pinfer.core.messages import Dtype

CONNECT_S_MAX = 5.0
"""To reach the next peer: ten round trips on the longest path, including a handshake."""

OPEN_S_MAX = 15.0
"""From a channel's start until its first message, and for a stage to accept."""

NUMPY_TYPES = {Dtype.F32: "<f4", Dtype.F16: "<f2"}
"""How each dtype of rows is read by numpy."""
