"""The figures that papers print, of sets of images: networks, distances, files, and what stands beside each figure."""
