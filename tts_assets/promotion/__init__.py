"""Promotion: which serving model is the promoted model of a voice."""
