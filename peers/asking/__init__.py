"""Asking for tokens: a chain of stages, and replacements for lost ones."""
