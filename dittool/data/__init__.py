"""Images and captions on their way to batches."""
