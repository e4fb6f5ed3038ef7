"""GRPO: a serving model talks, rewards judge what a listener would hear, the policy follows."""
