"""Diagnostics: ``python -m tts_assets.doctor`` and ``python -m tts_assets.doctor.gpu_hours``."""
