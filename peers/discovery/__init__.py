"""Discovering which peers serve what: advertisements, gossip, anti-entropy, bootstrap."""
