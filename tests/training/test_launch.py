"""Ranks that a trial of several devices starts."""

import pytest

from se_lab.spec import TrainSpec
from se_lab.training.launch import _meeting_point


def test_a_leftover_node_rank_is_nobodys_on_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_RANK", "1")
    with _meeting_point(TrainSpec(devices=2)) as meeting:
        assert meeting["NODE_RANK"] == meeting["GROUP_RANK"] == "0" and int(meeting["MASTER_PORT"]) > 0
