"""Experiments with their settings and results: `python -m studies NAME`, or `make study NAME=...`."""
