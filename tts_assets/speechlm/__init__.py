"""The speech language model that SFT, RLHF and serving share: prompts, model, generation."""
