"""GRPO: trains a serving model with reward functions on the speech that it generates."""
