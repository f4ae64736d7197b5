"""Implementations of RoIAlign, RoIPool and RoIWarp."""
