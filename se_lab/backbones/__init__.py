"""Nets of the SE paper that timm lacks; importing this package registers them with `timm.create_model`."""

from se_lab.backbones import bn_inception, cifar_preact, cifar_resnet, cifar_shake, resnet_v1, shufflenet

__all__ = ["bn_inception", "cifar_preact", "cifar_resnet", "cifar_shake", "resnet_v1", "shufflenet"]
