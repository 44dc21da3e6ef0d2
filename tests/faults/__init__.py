"""Faults: crashes at every step, `kill -9` at random moments, stores that fail on purpose, two at once, a full disk."""
