"""What is wrong with a workflow's parameters is said at once. A file of its own: it runs beside the study of test_study.py."""

import pytest
from live import Study, failed

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"preset": "tinny"}, "unknown preset 'tinny'"),
        ({"overrides": "train-steve.optim.lrr=1"}, "lrr"),
        ({"store": "s3://no-such-bucket/study"}, "no-such-bucket"),
    ],
)
def test_the_plan_fails_with_one_clear_line(toolbox, parameters, message):
    failed(Study(toolbox, "mistakes", **parameters).submit(), "plan", message)
