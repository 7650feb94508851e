"""GGUF files: reading, writing, and cutting models into ranges of layers."""
