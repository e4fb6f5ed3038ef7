"""Long recordings to clips with transcripts."""
