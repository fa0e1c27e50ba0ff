"""Shards: written, indexed, read, verified and streamed in deterministic batches, or handed to others' loops."""

from dittool.data.shards.webdataset_pipeline import as_webdataset

__all__ = ["as_webdataset"]
