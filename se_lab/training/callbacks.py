"""Callbacks for a LightningModule of one's own."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Literal

import lightning as L

from se_lab.spec import SESpec
from se_lab.units.insertion import Site, insert_se


class InsertSE(L.Callback):
    """Inserts units into the net of any LightningModule, before its optimizers are made and weights are loaded.

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
    ) -> None:
        """Say what to insert and where.

        Args:
            spec: The units.
            net: Path of the net in the LightningModule, such as model; by default the module itself.
            existing_se: As `insert_se` has it.
            at: As `insert_se` has it.
        """
        self.spec, self.net, self.existing_se, self.at = spec, net, existing_se, at
        self.sites: list[Site] = []
        """What was inserted last."""
        self._module: weakref.ref[L.LightningModule] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Insert the units, once into each module.

        Raises:
            SpecError: as `insert_se` does.
        """
        if self._module is None or self._module() is not pl_module:
            self._module = weakref.ref(pl_module)
            self.sites = insert_se(pl_module.get_submodule(self.net), self.spec, self.existing_se, at=self.at)
