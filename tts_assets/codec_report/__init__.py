"""Compares all codecs of the store on held-out recordings."""
