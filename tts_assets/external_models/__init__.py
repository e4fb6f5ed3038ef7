"""External models (XTTS, VITS, Tortoise), trained and run by coqui-tts in its own environment."""
