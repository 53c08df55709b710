"""Captioning many images."""
