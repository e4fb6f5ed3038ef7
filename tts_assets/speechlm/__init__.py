"""What SFT, RLHF and serving share: vocabulary, prompts, the model, and sampling from it."""
