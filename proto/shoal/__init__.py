"""What every part of shoal shares: the pure vocabulary, the control messages, the IO helpers."""
