"""Files, hashing, registries, specs and versions: what every other room may use."""
