"""Frozen networks that turn images and captions into features. The only place that imports transformers and
diffusers.
"""
