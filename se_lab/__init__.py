"""SE-Lab: Squeeze-and-Excitation ablations on timm backbones."""

from __future__ import annotations

from importlib.metadata import version

from se_lab.spec.lazy import lazy_names

__version__ = version("se-lab")

_HOMES = {
    "SESpec": "spec",
    "ModelSpec": "spec",
    "DataSpec": "spec",
    "OptimSpec": "spec",
    "TrainSpec": "spec",
    "RunSpec": "spec",
    "ExecSpec": "spec",
    "SpecError": "spec",
    "Unit": "units.unit",
    "SqueezeExcite": "units.squeeze_excite",
    "UNITS": "units.table",
    "SQUEEZE": "units.squeeze_excite",
    "EXCITATION": "units.squeeze_excite",
    "LAYOUTS": "units.families",
    "find_places": "units.insertion",
    "insert_se": "units.insertion",
    "Site": "units.insertion",
    "create_model": "units.model",
    "capture_excitations": "excitations.capture",
    "ExcitationStatistics": "excitations.statistics",
    "load_trained": "trained.load",
    "load_exported": "trained.export",
    "detection_backbone": "trained.detection",
    "profile": "units.costs",
    "Complexity": "units.costs",
    "run": "training.run",
    "ClassificationTask": "training.task",
    "InsertSE": "training.callbacks",
    "DATASETS": "data",
    "Splits": "data",
    "create_data": "data",
    "RunRecord": "store",
    "load_records": "sweep.records",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
