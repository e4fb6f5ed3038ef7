"""Waveforms to integer codes and back: codec checkpoints, codec training, codec shards."""
