"""llama.cpp in a worker process: binding, probing, batching."""
