"""Beneath a table stands what its rows share and which of their values are defaults."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from se_lab.report import ablation_table

Make = Callable[..., pd.DataFrame]


def test_notes_name_what_all_rows_share_and_the_defaults_among_them(study: Make) -> None:
    variants = [({"insertion": "none"}, [8.0]), ({"reduction": 4}, [7.0]), ({"reduction": 16}, [7.0])]
    notes = ablation_table(study(variants, **{"optim.lr": 0.3, "model.se.squeeze": "max"})).notes
    assert "All rows: learning rate 0.3; defaults for other settings." in notes
    assert "Rows with SE: squeeze max." in notes
    # SESpec's defaults, as the SE paper has them: reduction 16, sigmoid, all stages
    assert "Rows with SE, defaults: insertion standard, excitation sigmoid, stages all, FC bias no." in notes
    assert "Defaults among the rows: reduction 16." in notes
    without = ablation_table(study([*variants[:2], ({"reduction": 8}, [7.0])])).notes
    assert not [note for note in without if note.startswith("Defaults among")]
