"""What is done to what Ray's raylets say."""

import pytest

from workflows.engine.cluster import ray_private

COUNTED = "4 worker processes have been started on node: 1 with address: 2. This could be a result of many actors"


@pytest.mark.parametrize("none", [False, True])
def test_nothing_that_a_raylet_says_stands_among_the_results(monkeypatch, capsys, none):
    from ray._private import worker

    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)  # put back after the test
    ray_private.tidy_raylet_messages(none=none)
    ray_private.tidy_raylet_messages()  # a second time changes nothing
    for line in ("a worker died", COUNTED):
        data = {"lines": [line], "pid": "raylet", "ip": "", "job": None, "is_err": False, "actor_name": None}
        worker.print_to_stdstream({**data, "task_name": None}, ignore_prefix=False)
    out, err = capsys.readouterr()
    assert out == "" and "many actors" not in err and ("a worker died" in err) != none
