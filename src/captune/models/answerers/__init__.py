"""Models that answer questions: local, vision-language, or behind a server."""
