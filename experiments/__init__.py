"""What is published: named experiments, and the results they reached."""

from experiments.presets import EXPERIMENTS, describe, get

__all__ = ["EXPERIMENTS", "describe", "get"]
