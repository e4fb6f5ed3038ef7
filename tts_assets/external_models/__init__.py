"""Other model families, trained on the same samples and scored by the same reports."""
