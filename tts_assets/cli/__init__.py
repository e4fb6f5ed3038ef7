"""The command ``tts-assets``."""
