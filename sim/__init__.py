"""Networks of virtual peers: the production roles on virtual links, clock and engines."""
