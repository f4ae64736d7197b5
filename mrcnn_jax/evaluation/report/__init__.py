"""Reports of evaluations as one HTML file."""
