"""The limits of relays, circuits and ways through routers, for `limits_page`."""

_LIMITS, _RELAY = "transports.libp2p.relay_limits", "transports.libp2p.relay"
_PORTS, _PUNCHING = "transports.port_mapping", "transports.libp2p.punching_rules"
_HELD, _WATCH = "transports.libp2p.held_relays", "transports.libp2p.circuit_watch"
_EXTENSION, _PROOFS = "transports.libp2p.extension", "p2pinfer.node.held_proofs"

_PADDING = "transports.libp2p.padding"

RELAYS = [
    ("reservations at a relay", "{}", _LIMITS, "RESERVATIONS_MAX"),
    ("per household", "{}", _LIMITS, "RESERVATIONS_PER_SITE_MAX"),
    ("a reservation lasts", "{}", _LIMITS, "RESERVATION_S"),
    ("circuits at a relay", "{}", _LIMITS, "CIRCUITS_MAX"),
    ("per hidden peer, and per caller", "{}", _LIMITS, "CIRCUITS_PER_PEER_MAX"),
    ("openings a minute", "{}", _LIMITS, "OPENINGS_PER_MINUTE"),
    ("what a relay carries (`--relay-mbit`)", "{} Mbit/s", _LIMITS, "RATE_MBIT"),
    ("how much of that at once", "{}", _LIMITS, "BURST_S"),
    ("what one circuit may use of it, one way", "{}", _LIMITS, "CIRCUIT_SHARE"),
    (
        "requests that a relay reads or connects",
        "{}, {} per peer",
        _RELAY,
        "ASKING_MAX ASKING_PER_PEER_MAX",
    ),
    ("a circuit is kept without a byte for", "{}", _RELAY, "IDLE_S_MAX"),
    ("where one end sends no more", "{}", _RELAY, "HALF_CLOSED_S_MAX"),
    ("relays that a hidden peer holds", "{}", _HELD, "RELAYS_MAX"),
    ("candidates that it looks at for nearer ones", "{}", _LIMITS, "LOOKED_AT_MAX"),
    ("it calls itself through each of them every", "{}", _HELD, "PROVE_S"),
    ("calls that it takes at once", "{}", "transports.libp2p.circuit", "CALLS_MAX"),
    ("a relay that broke circuits is avoided for", "{}", _WATCH, "BLAMED_S"),
    ("a circuit is left whose pings are late by", "{} for {}", _WATCH, "LATE_S LATE_FOR_S"),
    ("one that carries little", "{}", _WATCH, "ALONE_LATE_S"),
    ("the peer behind a silent circuit is called another way after", "{}", _WATCH, "SILENT_S"),
    ("broken circuits that are called again at once", "{}", _WATCH, "REDIALS_MAX"),
    (
        "a stage keeps a session whose requester's connection broke",
        "{}",
        "peers.serving.stage_session",
        "REOPEN_S_MAX",
    ),
    ("paths that a relay carries", "{}", _EXTENSION, "EXTENSIONS_MAX"),
    ("per caller, and to one peer", "{}", _EXTENSION, "EXTENSIONS_PER_PEER_MAX"),
    ("openings a minute of one caller", "{}", _EXTENSION, "OPENINGS_PER_MINUTE"),
    ("a relay of a path must answer within", "{}", "transports.libp2p.path", "RELAY_S_MAX"),
    (
        "second relays that sessions draw from",
        "{}",
        "p2pinfer.node.hidden_way",
        "SECONDS_MAX",
    ),
    ("cells on a path", "{} to {}", _PADDING, "CELL_BYTES_MIN CELL_BYTES_MAX"),
    ("between two of them where rows are paced", "{} to {}", _PADDING, "PACE_MS_MIN PACE_MS_MAX"),
    ("what paced ones may amount to a second", "{}", _PADDING, "PACED_BYTES_MAX"),
    ("they go on after the last data for", "{}", _PADDING, "LINGER_S"),
    ("first relays that are kept", "{}", "p2pinfer.node.guards", "GUARDS_MAX"),
    ("a proof made over a path is held back", "{} at most", _PROOFS, "HELD_S_MAX"),
    ("of such proofs, waiting at once", "{}", _PROOFS, "WAITING_MAX"),
    ("forgotten if nobody heard of it", "{}", _PROOFS, "WAITS_S_MAX"),
    (
        "dials without an answer at one host, or on private networks, in search of relays",
        "{} in {}",
        "transports.vain_dials",
        "VAIN_PER_HOST_MAX VAIN_S",
    ),
]
"""What is limited, how that is written, the module, and its constants."""

ROUTERS = [
    (
        "a port of a router is asked for; renewed at half of that",
        "{}",
        f"{_PORTS}.messages",
        "LEASE_S",
    ),
    ("looking whether the router still knows it, every", "{}", f"{_PORTS}.holders", "CHECK_S"),
    (
        "tries to punch a hole for one peer; then it rests",
        "{} in {}",
        _PUNCHING,
        "TRIES_MAX REST_S",
    ),
    (
        "the same at one host, for all peers together",
        "{} in {}",
        _PUNCHING,
        "TRIES_PER_HOST_MAX WINDOW_S",
    ),
    (
        "a channel of a session waits for a direct connection, once for each peer",
        "{}",
        "transports.libp2p.punching",
        "DIRECT_S_MAX",
    ),
]
"""The same of ways around routers."""
