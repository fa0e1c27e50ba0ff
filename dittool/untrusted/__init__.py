"""Readers of files from strangers. They trust nothing that a file says."""
