"""Diagnostics of machine and storage: ``python -m tts_assets.doctor``."""
