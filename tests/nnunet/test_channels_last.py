# SPDX-License-Identifier: Apache-2.0
"""Weights with the channels last: another order in memory, the same network."""

from __future__ import annotations

import copy

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_dhc.nnunet.network.cotrained_pair import store_channels_last


def make_network(features: tuple[int, ...] = (4, 8, 8)) -> nn.Module:
    torch.manual_seed(0)
    return PlainConvUNet(
        2, 3, features, nn.Conv3d, 3, ((1, 1, 1), (2, 2, 2), (2, 2, 2)), 1, 3, 1, True, nn.InstanceNorm3d,
        {"affine": True}, None, None, nn.LeakyReLU, {"inplace": True}, deep_supervision=True,
    )


def outputs_and_gradients(network: nn.Module) -> list[torch.Tensor]:
    outputs = network(torch.randn(2, 2, 8, 12, 8, generator=torch.Generator().manual_seed(1)))
    sum((output**2).mean() for output in outputs).backward()
    return [*outputs, *(parameter.grad for parameter in network.parameters() if parameter.grad is not None)]


def test_outputs_and_gradients_stay():
    network = make_network()
    reordered = copy.deepcopy(network)
    assert store_channels_last(reordered)
    for before, after in zip(outputs_and_gradients(network), outputs_and_gradients(reordered), strict=True):
        torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-5)
    convolutions = [module for module in reordered.modules() if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d))]
    assert convolutions
    for module in convolutions:
        assert module.weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_saved_weights_are_those_of_any_order(tmp_path):
    reordered = make_network()
    store_channels_last(reordered)
    torch.save(reordered.state_dict(), tmp_path / "weights.pth")
    other = make_network()
    nn.init.zeros_(other.encoder.stages[0][0].convs[0].conv.weight)
    other.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    for name, value in reordered.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert other.encoder.stages[1][0].convs[0].conv.weight.is_contiguous()


def test_wide_networks_stay():
    wide = make_network((16, 32, 32))
    assert not store_channels_last(wide)
    assert all(module.weight.is_contiguous() for module in wide.modules() if isinstance(module, nn.Conv3d))
