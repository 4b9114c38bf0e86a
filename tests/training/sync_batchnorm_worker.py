"""One of several processes: batch normalization of its part of a batch, against `BatchNorm2d` of the whole."""

import copy

import torch
import torch.distributed as dist
from torch import nn

from googlenet.training.sync_batchnorm import convert_sync_batchnorm

dist.init_process_group("gloo")
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
plain = nn.BatchNorm2d(5, eps=1e-3)
nn.init.uniform_(plain.weight)
nn.init.uniform_(plain.bias)
parted = nn.Sequential(copy.deepcopy(plain))
assert convert_sync_batchnorm(parted)
assert parted.state_dict().keys() == {f"0.{key}" for key in plain.state_dict()}
for sizes in ((3, 3, 2), (1, 7, 0), (0, 0, 8)):
    whole = (torch.randn(8, 5, 3, 3) * 3 + 7).requires_grad_()
    weights = torch.randn(8, 5, 3, 3)
    part = whole.detach().split(sizes)[dist.get_rank()].clone().requires_grad_()
    plain.zero_grad()
    parted.zero_grad()
    expected, out = plain(whole), parted(part)
    (expected * weights).sum().backward()
    (out * weights.split(sizes)[dist.get_rank()]).sum().backward()
    close = {"atol": 1e-12, "rtol": 1e-12}  # float64: sums of at most 72 numbers near 10
    torch.testing.assert_close(out, expected.split(sizes)[dist.get_rank()], **close)
    torch.testing.assert_close(part.grad, whole.grad.split(sizes)[dist.get_rank()], **close)
    for mine, exact in zip(parted.parameters(), plain.parameters(), strict=True):
        added = mine.grad.clone()
        dist.all_reduce(added)
        torch.testing.assert_close(added, exact.grad, **close)
    for mine, exact in zip(parted.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, exact)
parted.eval()
torch.testing.assert_close(parted(whole), plain.eval()(whole))
dist.destroy_process_group()
