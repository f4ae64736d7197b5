"""The detector's networks as Flax Linen modules."""
