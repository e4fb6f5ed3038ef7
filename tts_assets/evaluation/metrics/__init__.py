"""Metrics of syntheses; ``metric.py`` says how to write one."""
