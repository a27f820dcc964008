"""What is checked of a sweep's nets before any trial starts."""

from se_lab.spec import UNIT_FIELDS, ExecSpec, ModelSpec, RunSpec, SESpec
from se_lab.sweep.nets import check_nets


def test_a_sweep_over_every_unit_has_nets_that_can_be_built():
    trials = [RunSpec(ModelSpec("cifar_resnet20", SESpec(unit=unit))) for unit in UNIT_FIELDS]
    assert check_nets(trials, ExecSpec(logger="none"), None) == []


def test_ratios_that_give_a_unit_the_same_width_are_named():
    trials = [RunSpec(ModelSpec("cifar_resnet20", SESpec(unit="cbam", reduction=r))) for r in (32, 64)]
    (remark,) = check_nets(trials, ExecSpec(logger="none"), None)
    assert remark == "cifar_resnet20: r=32 and r=64 give the same hidden width in 67% of the units"
