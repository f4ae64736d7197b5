"""What is published: named experiments, and the results they reached."""

from experiments import small  # isort: skip - what a newcomer runs is listed first
from experiments import paper
from experiments.registry import EXPERIMENTS, describe, get

__all__ = ["EXPERIMENTS", "describe", "get", "paper", "small"]
