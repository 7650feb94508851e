"""What a peer does: serve a stage, ask for tokens, say what it serves."""
