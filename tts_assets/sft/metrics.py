"""The trainers' view of ``tts_assets/metrics.py``."""

from tts_assets.metrics import read_metrics, truncate_metrics

__all__ = ["read_metrics", "truncate_metrics"]
