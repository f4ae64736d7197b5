"""Plots of training runs: all series are drawn, and odd runs do not fail."""

import numpy as np
import pytest

from mrcnn_jax.data.image_io import read_image
from mrcnn_jax.visualize.plots import plot_comparison, plot_curves


def test_curves_hold_losses_and_evaluations(tmp_path):
    losses = ((step, 2 / (step + 1)) for step in range(200))
    history = [{"step": s, "loss": loss, "loss_mask": loss / 2, "learning_rate": 0.02} for s, loss in losses]
    evaluations = [{"step": step, "segm/AP": ap, "segm/APl": None} for step, ap in ((100, 12.5), (199, 20.0))]
    plot_curves(history, tmp_path / "plots" / "both.png", evaluations)
    plot_curves(history, tmp_path / "losses.png")
    both, losses = read_image(tmp_path / "plots" / "both.png"), read_image(tmp_path / "losses.png")
    assert both.shape[1] > 1.5 * losses.shape[1]
    blue = (np.abs(losses.astype(int) - (0x1F, 0x77, 0xB4)).sum(axis=-1) < 30).sum()
    orange = (np.abs(losses.astype(int) - (0xFF, 0x7F, 0x0E)).sum(axis=-1) < 30).sum()
    assert blue > 500 and orange > 200  # both lines are there, the total heavier


def test_curves_without_metrics_show_losses_alone(tmp_path):
    history = [{"step": step, "loss": 1.0} for step in range(5)]
    plot_curves(history, tmp_path / "losses.png")
    plot_curves(history, tmp_path / "undefined.png", [{"step": 4, "segm/AP": None}, {"step": 5}])
    assert (read_image(tmp_path / "undefined.png") == read_image(tmp_path / "losses.png")).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "history",
    [
        [],
        [{"step": 0, "loss": 1.5}],
        [{"step": s, "loss": 0.0, "loss_mask": float("nan"), "learning_rate": None} for s in range(3)],
        [{"step": 0, "loss": 1.0}, {"step": 1, "loss": float("inf")}, {"step": 2, "loss_mask": 0.5}],
        [{"step": "1", "loss": "high"}, {"loss": 2.0}, {"step": 3, "loss": [1], "loss_mask": 10**400}],
    ],
)
def test_curves_of_empty_and_non_finite_runs_are_plotted(tmp_path, history):
    plot_curves(history, tmp_path / "odd.png", [{"step": 1, "segm/AP": None}])
    assert read_image(tmp_path / "odd.png").std() > 1


def test_comparison_holds_every_run(tmp_path):
    runs = {
        name: [{"step": step, "loss": 2 / (step + 1) + shift} for step in range(50)]
        + [{"step": 49, "bbox/AP": 10.0, "segm/AP": 9.0}]
        for name, shift in (("short", 0.0), ("long", 0.5))
    }
    plot_comparison(runs, tmp_path / "runs.png")
    picture = read_image(tmp_path / "runs.png").astype(int)
    for color in ((0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E)):
        assert (np.abs(picture - color).sum(axis=-1) < 30).sum() > 200
