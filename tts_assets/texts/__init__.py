"""Text that is trained on beside speech: instructions with their answers, and plain texts."""
