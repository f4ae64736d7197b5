"""Detection in images, files and data sets with trained weights."""
