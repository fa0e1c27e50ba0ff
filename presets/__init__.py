"""The shipped presets: one flat TOML file each. `dit presets` lists them."""
