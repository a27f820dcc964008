"""Callbacks for any LightningModule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import lightning as L

from se_lab.spec import SESpec
from se_lab.units.insertion import Site, insert_se
from se_lab.units.paths import Example


class InsertSE(L.Callback):
    """Inserts units into the net of a LightningModule before its optimizers are created.

    Examples:
        >>> callback = InsertSE(SESpec(reduction=8), net="model")  # L.Trainer(callbacks=[callback]) inserts the units
        >>> callback.sites  # none yet
        []
    """

    def __init__(
        self,
        spec: SESpec,
        net: str = "",
        existing_se: Literal["refuse", "keep", "replace"] = "refuse",
        at: Sequence[str] | Mapping[str, str] | None = None,
        example: Example = None,
    ) -> None:
        """Set the units and their places.

        Args:
            spec: The units.
            net: The path of the net in the LightningModule, such as model; by default the module itself.
            existing_se: See `insert_se`.
            at: See `insert_se`.
            example: See `insert_se`.
        """
        self.spec, self.net, self.existing_se, self.at, self.example = spec, net, existing_se, at, example
        self.sites: list[Site] = []
        """The sites of the last insertion."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Insert the units, unless they are already inserted, such as by a fit before a test.

        Raises:
            SpecError: as `insert_se` does.
        """
        net = pl_module.get_submodule(self.net)
        settings = (self.spec, self.existing_se, None if self.at is None else str(self.at))
        if getattr(net, "se_inserted", None) != settings:
            insert_se(net, self.spec, self.existing_se, at=self.at, example=self.example)
            net.se_inserted = settings  # type: ignore[assignment]
        self.sites = net.se_sites  # type: ignore[assignment]
