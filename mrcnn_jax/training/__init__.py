"""Targets, losses, the per-device step and the loop around it."""
