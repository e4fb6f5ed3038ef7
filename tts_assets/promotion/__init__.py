"""Which serving model speaks for a voice: candidates, the incumbent, and what served before."""
