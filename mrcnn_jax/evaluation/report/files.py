"""Names of the files that a report consists of."""

KINDS = "bbox", "segm", "keypoints"
CAPTIONS = {
    "precision_recall": "Precision over recall, mean of the classes",
    "scores": "F1, precision and recall of all classes together over the minimum score (grey: F1 of classes)",
    "errors": "AP50 that correcting all errors of a kind would gain, and their number",
    "sizes": "AP by the side of a square of the object's area: COCO's sizes, and quarters of these objects",
    "calibration": "Share of correct detections over the score",
    "confusion": "Percent of each row: objects by what they are detected as; false detections by class",
}
"""Figures of each kind, and what they show."""
ANALYSIS, REPORT = "analysis.json", "report.html"
FIGURES = tuple(f"figures/{kind}_{name}.png" for kind in KINDS for name in CAPTIONS)
REPORT_FILES = REPORT, ANALYSIS, *FIGURES
"""All files that a report may consist of."""
