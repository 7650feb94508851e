"""Audits: running stages again, and proofs of fraud."""
