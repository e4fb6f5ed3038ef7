"""Texts for training beside speech: instructions with answers, and plain texts."""
