"""Specs of an experiment: dataclasses, their checks, their flags and the shipped recipes.

In: Python arguments, flags, YAML. Out: a valid `RunSpec`, whose hash is the trial id.
"""

from se_lab.spec.build import label as label
from se_lab.spec.build import leaves as leaves
from se_lab.spec.build import run_name as run_name
from se_lab.spec.build import run_spec as run_spec
from se_lab.spec.build import trial_of as trial_of
from se_lab.spec.build import variant_name as variant_name
from se_lab.spec.checks import SpecError as SpecError
from se_lab.spec.checks import check_choice as check_choice
from se_lab.spec.checks import check_fields as check_fields
from se_lab.spec.checks import nearest as nearest
from se_lab.spec.execution import ExecSpec as ExecSpec
from se_lab.spec.fields import BUILT_IN_SETS as BUILT_IN_SETS
from se_lab.spec.fields import DATA_SETS as DATA_SETS
from se_lab.spec.fields import INSERTIONS as INSERTIONS
from se_lab.spec.fields import OPERATORS as OPERATORS
from se_lab.spec.fields import SE_DETAILS as SE_DETAILS
from se_lab.spec.fields import UNIT_FIELDS as UNIT_FIELDS
from se_lab.spec.fields import DataSpec as DataSpec
from se_lab.spec.fields import ModelSpec as ModelSpec
from se_lab.spec.fields import OptimSpec as OptimSpec
from se_lab.spec.fields import RunSpec as RunSpec
from se_lab.spec.fields import SESpec as SESpec
from se_lab.spec.fields import TrainSpec as TrainSpec
from se_lab.spec.fields import moot_fields as moot_fields
from se_lab.spec.ids import SPEC_VERSION as SPEC_VERSION
from se_lab.spec.ids import dotted as dotted
from se_lab.spec.ids import fields_of as fields_of
from se_lab.spec.ids import seed_of as seed_of
from se_lab.spec.reading import expand_path as expand_path
from se_lab.spec.reading import read_yaml as read_yaml
from se_lab.spec.shipped import find_sweep as find_sweep
