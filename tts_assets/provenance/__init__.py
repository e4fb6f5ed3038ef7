"""Where speech comes from: the watermark, signed manifests, and consent that has ended."""
