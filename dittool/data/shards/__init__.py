"""Shards: written, indexed, read, verified, and streamed as deterministic batches."""
