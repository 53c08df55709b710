"""Training without labels against training on references, on equal time."""
