"""Dagster resources of assets: the artifact store, the launchers and the vLLM server."""
