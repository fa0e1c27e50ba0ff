"""One evaluation from noise to latents."""
