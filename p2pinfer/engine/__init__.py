"""Running layers: cutting GGUF files, llama.cpp in a process of its own, sampling."""
