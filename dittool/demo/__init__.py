"""A drawn data set, the checker that reads it back from pixels, and the run from nothing to a verdict."""
