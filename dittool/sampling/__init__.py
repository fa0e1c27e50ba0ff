"""From noise to an image: solvers, guidance, and the pipeline that joins them."""
