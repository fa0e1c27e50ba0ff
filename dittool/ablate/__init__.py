"""The same run with one thing changed, compared pair by pair."""
