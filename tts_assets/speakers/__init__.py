"""Whose voice it is: training a speaker encoder, judging it, and asking it."""
