"""Sensors: they start runs and send alerts."""
