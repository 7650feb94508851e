"""Asking for tokens: a chain of stages, and what replaces those that are lost."""
