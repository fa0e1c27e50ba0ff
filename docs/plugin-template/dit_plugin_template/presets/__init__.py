"""Presets: each `.toml` file here is one, by its name."""
