"""What an exported folder runs in its reader's process: models and pipelines of diffusers around ours.

Their sources are joined with ours into the folder's files (`export/joining.py`).
"""

from dittool.encoders.torchvision_remedy import ensure_torchvision

ensure_torchvision()  # before the first import of diffusers
