"""Caches of one idea, an image is evaluated once: its preprocessing, its vision pass, its prefill, its prompt."""
