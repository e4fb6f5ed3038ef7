"""``python -m tts_assets.doctor``: what this machine has for the pipeline, and what it lacks."""
