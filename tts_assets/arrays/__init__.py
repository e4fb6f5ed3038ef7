"""Shards of codes -> two memory-mapped arrays a corpus: training and validation."""
