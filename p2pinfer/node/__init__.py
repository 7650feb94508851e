"""Real processes: a peer and a requester put together, and what they keep on this machine."""
