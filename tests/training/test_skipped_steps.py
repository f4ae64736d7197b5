"""Reports of skipped steps."""

import jax.numpy as jnp
import pytest
import tiny_run

from mrcnn_jax.training.skipped_steps import DivergedError, SkippedSteps


@pytest.mark.parametrize(
    "total, allowed, stops", [(0, 0, False), (2, 2, False), (3, 2, True), (1, 0, True)]
)
def test_skipped_steps_are_reported_and_stop_the_run_beyond_the_limit(tmp_path, total, allowed, stops):
    """``total`` includes steps of earlier checks."""
    console = tiny_run.recording_console()
    skipped = SkippedSteps(allowed, tmp_path, console)
    skipped.add(7, [70, 71], jnp.zeros(()))
    skipped.add(8, [80, 81], jnp.float32(total > 0))
    if stops:
        message = r"skipped step 8 \(image ids 80, 81\).*train.learning_rate.*train.max_skipped_steps"
        with pytest.raises(DivergedError, match=message):
            skipped.check(jnp.int32(total))
    else:
        skipped.check(jnp.int32(total))
        output = console.file.getvalue()
        assert ("Warning: skipped step 8 (image ids 80, 81)" in output) == (total > 0)
        assert (f"{total} of {allowed} allowed (train.max_skipped_steps)." in output) == (total > 0)
    skipped.check(jnp.int32(total))  # the flags were cleared
