"""What an experiment is: frozen dataclasses, their checks, their flags, and the shipped recipes.

In: Python arguments, flags, YAML. Out: a checked `RunSpec`, whose content is the trial id.
"""

from se_lab.spec.fields import BUILT_IN_SETS as BUILT_IN_SETS
from se_lab.spec.fields import DATA_SETS as DATA_SETS
from se_lab.spec.fields import INSERTIONS as INSERTIONS
from se_lab.spec.fields import OPERATORS as OPERATORS
from se_lab.spec.fields import SE_DETAILS as SE_DETAILS
from se_lab.spec.fields import SPEC_VERSION as SPEC_VERSION
from se_lab.spec.fields import UNIT_FIELDS as UNIT_FIELDS
from se_lab.spec.fields import DataSpec as DataSpec
from se_lab.spec.fields import ExecSpec as ExecSpec
from se_lab.spec.fields import ModelSpec as ModelSpec
from se_lab.spec.fields import OptimSpec as OptimSpec
from se_lab.spec.fields import RunSpec as RunSpec
from se_lab.spec.fields import SESpec as SESpec
from se_lab.spec.fields import SpecError as SpecError
from se_lab.spec.fields import TrainSpec as TrainSpec
from se_lab.spec.fields import check_choice as check_choice
from se_lab.spec.fields import dotted as dotted
from se_lab.spec.fields import fields_of as fields_of
from se_lab.spec.fields import label as label
from se_lab.spec.fields import leaves as leaves
from se_lab.spec.fields import moot_fields as moot_fields
from se_lab.spec.fields import nearest as nearest
from se_lab.spec.fields import run_spec as run_spec
from se_lab.spec.fields import seed_of as seed_of
from se_lab.spec.fields import trial_of as trial_of
