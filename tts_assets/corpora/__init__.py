"""Corpora: recordings to utterances to filtered samples."""
