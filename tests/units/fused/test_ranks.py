"""Fused nets on several processes: one process that sees the whole batch is the reference."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.layers import convert_sync_batchnorm
from timm.models.resnet import BasicBlock, ResNet

from se_lab import SESpec, insert_se
from se_lab.parallel.sync_bn import SyncBatchNorm, sync_on_cpu
from se_lab.sweep.server import forking
from se_lab.units.fused import fuse, units


def build():
    torch.manual_seed(0)
    net = ResNet(layers=(1, 1, 1, 1), channels=(8, 8, 8, 8), num_classes=3, block=BasicBlock, zero_init_last=False)
    return net


def images():
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def loss(out):
    return out.square().sum() / 6  # the mean over the whole batch


def rank(number, store, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=2)
    net = convert_sync_batchnorm(build())
    torch.manual_seed(2)
    insert_se(net, SESpec(reduction=2))
    sync_on_cpu(net)
    assert isinstance(net.layer1[0].bn2, SyncBatchNorm)
    fuse(net.double())
    calls = []
    tail = units.tail
    units.tail = lambda *arguments: calls.append(1) or tail(*arguments)
    parallel = torch.nn.parallel.DistributedDataParallel(net)
    mine = images()[:4] if number == 0 else images()[4:]  # unequal shares
    (2 * loss(parallel(mine))).backward()  # DDP takes the mean over ranks
    assert len(calls) == 4
    if number == 0:
        found = {name: parameter.grad for name, parameter in net.named_parameters()} | dict(net.named_buffers())
        torch.save(found, results)
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_with_sync_bn_take_the_step_of_one_process_with_all_images(tmp_path):
    with forking():
        mp.start_processes(rank, (tmp_path / "store", tmp_path / "results"), nprocs=2, start_method="forkserver")
    net = build()
    torch.manual_seed(2)
    insert_se(net, SESpec(reduction=2))
    alone = copy.deepcopy(net).double()
    loss(alone(images())).backward()
    expected = {name: parameter.grad for name, parameter in alone.named_parameters()} | dict(alone.named_buffers())
    for name, value in torch.load(tmp_path / "results").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9, msg=name)
