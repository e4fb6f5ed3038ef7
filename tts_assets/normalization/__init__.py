"""Written text to spoken text: in training, in synthesis, and to compare transcripts."""
