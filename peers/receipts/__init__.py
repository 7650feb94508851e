"""Receipts: signing them at a stage, and gathering them at the requester."""
