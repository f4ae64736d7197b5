"""Formats of annotations, one module each."""
