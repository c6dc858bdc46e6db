"""Runnable experiments: ``python -m recipes fit --config recipes/quickstart.yaml``."""
