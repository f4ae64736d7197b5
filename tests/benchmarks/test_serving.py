"""The committed measurement of serving holds what the guide says of it."""

import json

from benchmarks.serving.measure import Options


def test_no_request_is_lost_and_batches_gain_nothing_on_a_cpu():
    result = json.loads(Options.out.read_text())
    single, batched = (result["batch_sizes"][size] for size in ("1", "4"))
    assert (result["requests"], result["clients"]) == (200, 16) and result["rounds"] >= 3
    assert single["lost"] == batched["lost"] == 0
    assert batched["requests_per_second"] < 1.1 * single["requests_per_second"]
    for measured in (single, batched):
        first, *_, last = measured["megabytes_after_each_round"]
        assert last < first + 100
