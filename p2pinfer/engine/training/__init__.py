"""Training of adapters for a model's last layers, in NumPy."""
