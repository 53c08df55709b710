"""Supervised fine-tuning on references."""
