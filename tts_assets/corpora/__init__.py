"""Recordings as they lie -> utterances -> filtered samples."""
