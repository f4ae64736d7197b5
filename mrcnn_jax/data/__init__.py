"""Data sets on disk, their formats, and batches of their images. On the host, with NumPy and OpenCV."""
