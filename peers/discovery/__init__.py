"""Who serves what: advertisements, gossip, anti-entropy, and ways into a swarm."""
