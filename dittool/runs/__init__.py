"""What there is to see of runs: their state, and a page that shows one while it trains."""
