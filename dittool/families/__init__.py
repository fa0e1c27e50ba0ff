"""What can be trained, side by side: each family is a frozen dataclass of plain functions, imported when first used."""
