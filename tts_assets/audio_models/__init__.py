"""Models that score audio: ASR (Whisper), DNSMOS, speaker embeddings; WER of transcripts."""
