"""GRPO with any scorer as the reward."""
