"""Dagster helpers that several stages share."""
