"""Merged arrays of codes: two memory-mapped arrays a corpus, for training and validation."""
