"""Inspection of data sets, runs and weights: what they hold, and what looks wrong."""
