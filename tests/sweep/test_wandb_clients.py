"""What older clients of W&B do otherwise than the one that is installed."""

import pytest
import wandb as client

from se_lab.sweep.records import load_records
from tests.sweep.wandb_server import ENTITY


def test_a_client_that_has_no_lazy_runs_is_asked_for_runs_all_the_same(server, monkeypatch):
    def runs(self, path=None, filters=None, order="+created_at", per_page=50, include_sweeps=True):  # as in 0.19
        return original(self, path, filters, order, per_page, include_sweeps)

    original = client.Api.runs
    monkeypatch.setattr(client.Api, "runs", runs)
    with pytest.raises(FileNotFoundError, match="contains no trials"):
        load_records(f"wandb:{ENTITY}/nothing")
