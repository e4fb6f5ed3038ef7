"""What is measured of an utterance, a metric a file; ``metric.py`` says how to write one."""
