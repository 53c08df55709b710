"""Reward-hacking monitor."""
