"""The encoders driven over the source, and the derived store that keeps what they make."""
