"""Hashing, files and versions: what every room may use."""
