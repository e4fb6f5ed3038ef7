"""Text-to-speech training as software-defined assets: one folder a stage, data flows down."""

__version__ = "0.1.0"
