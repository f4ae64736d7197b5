"""Generates the table of published weights, in Markdown, from the catalogue."""

from mrcnn_jax.weights import zoo

MARKER = "<!-- published weights -->"
"""Line of a page that the table replaces."""
HEADER = ["name", "predicts", "trained on", "box AP", "mask AP", "keypoint AP", "MB"]


def published_weights() -> str:
    """Returns the table, a row for each entry, whose name links to the file, and the terms below."""
    rows = [HEADER, ["---"] * 3 + ["---:"] * 4]
    for entry in zoo.ENTRIES.values():
        figures = entry.box_ap, entry.mask_ap, entry.keypoint_ap
        size = "" if entry.megabytes is None else f"{entry.megabytes:.0f}"
        numbers = ["" if ap is None else f"{ap:.1f}" for ap in figures]
        rows.append([f"[`{entry.name}`]({entry.url})", entry.description, entry.trained_on, *numbers, size])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    terms = "; ".join(f"{library}: {licence}" for library, licence in zoo.LICENCES.items())
    return f"{table}\n\nTerms of the weights: {terms}."
