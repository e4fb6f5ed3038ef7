"""Supervised fine-tuning: code arrays -> SpeechLM checkpoints."""
