"""The words everybody uses: ids, messages, errors. Pure values and functions, no I/O."""
