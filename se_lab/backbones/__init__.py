"""Nets that timm lacks: those of the SE paper, registered with timm, and torchvision's.

In: names and arguments. Out: untrained nets with timm's interface.
"""

from se_lab.backbones import bn_inception, cifar_preact, cifar_resnet, cifar_shake, resnet_v1, shufflenet
from se_lab.backbones.torchvision_nets import PREFIX, build_torchvision, torchvision_names

__all__ = [
    "PREFIX",
    "bn_inception",
    "build_torchvision",
    "cifar_preact",
    "cifar_resnet",
    "cifar_shake",
    "resnet_v1",
    "shufflenet",
    "torchvision_names",
]
