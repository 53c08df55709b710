"""ViZer on storybook: zero-label training against supervision, with controls."""
