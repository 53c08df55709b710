"""Scorers of the text alone."""
