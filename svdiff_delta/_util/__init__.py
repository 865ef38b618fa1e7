"""Share what every other room uses and no user sees: files, limits, JSON, YAML, TOML, patterns, threads."""
