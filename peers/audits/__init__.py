"""Audits: stages run again, and proofs of fraud."""
