"""Metrics of COCO and Cityscapes."""
