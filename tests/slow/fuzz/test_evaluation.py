"""Mutated ground truth and results end in metrics or in one sentence."""

from fuzz import Campaign
from hypothesis import given
from hypothesis import strategies as st
from mutated_results import evaluate_mutated, mutations

CAMPAIGN = Campaign("evaluation", cases=2_000, cases_in_ci=300)


@CAMPAIGN.settings
@given(mutations(), st.sampled_from(["bbox", "segm", "keypoints", "proposals"]))
def test_mutated_ground_truth_and_results(mutation, kind):
    with CAMPAIGN.case():
        evaluate_mutated(mutation, kind)


def test_figures_are_written():
    CAMPAIGN.write()
