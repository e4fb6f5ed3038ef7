"""Programs of the environment with coqui-tts: they import it, numpy, and nothing of this project
outside of this folder."""
