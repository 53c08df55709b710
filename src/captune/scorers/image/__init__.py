"""Scorers that compare a caption with its image."""
