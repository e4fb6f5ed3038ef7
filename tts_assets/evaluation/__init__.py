"""How good a voice is: what Whisper hears, how natural it sounds, whose voice it is; reports."""
