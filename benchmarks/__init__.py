"""Benchmarks of speed and memory on the local machine."""
