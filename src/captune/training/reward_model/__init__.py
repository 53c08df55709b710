"""Reward models: a head on a frozen encoder that learns preferences from pairs (Compress & Align)."""
