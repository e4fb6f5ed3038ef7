"""Programs for the environment of coqui-tts.

They import coqui-tts, numpy and torch, and nothing of this project outside of this folder.
"""
