"""The shared vocabulary: ids, messages, errors. Pure values and functions, no I/O."""
