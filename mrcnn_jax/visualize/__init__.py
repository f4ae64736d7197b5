"""Pictures of detections, contact sheets and plots."""
