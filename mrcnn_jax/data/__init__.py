"""Data sets on disk, and how their images become batches. NumPy only: nothing here touches a device."""
