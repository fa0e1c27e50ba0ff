"""Trained models for people without `dit`: weights, a folder of diffusers, a model card, the hub."""
