"""Scorers that compare a caption with references."""
