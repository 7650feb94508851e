"""Asking a swarm: answers, conversations, sessions that are kept, and the library."""
