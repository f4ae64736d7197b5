"""Exported detectors against the live one: detections, sizes of files, speed."""
