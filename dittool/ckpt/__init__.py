"""Checkpoint files: written atomically, read without running them."""
