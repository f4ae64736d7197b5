"""Analysis of an evaluation: where detections err, and what correcting that would gain."""
