"""Rules, proven by running the thing."""
