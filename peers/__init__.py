"""What a peer does: serve a stage, ask for tokens, advertise what it serves."""
