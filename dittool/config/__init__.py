"""Configuration: strict typed sections, TOML files with overrides, presets."""
