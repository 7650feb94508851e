"""Members of a learning task: what they say, what they give each other, and rounds."""
