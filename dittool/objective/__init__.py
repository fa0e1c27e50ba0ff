"""What training minimises: pure functions. Imports torch only."""
