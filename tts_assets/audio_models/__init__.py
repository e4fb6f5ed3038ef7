"""What machines hear in a clip: its words, how natural it sounds, whose voice it is."""
