"""The networks. Imports torch only."""
