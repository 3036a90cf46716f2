# SPDX-License-Identifier: Apache-2.0
"""The moving average of both sub-networks."""

from __future__ import annotations

import torch
from torch import nn

from nnunet_dhc.nnunet.network.averaged_pair import AveragedPair
from nnunet_dhc.nnunet.network.cotrained_pair import CoTrainedPair


def test_weights_follow_slowly_and_statistics_at_once():
    pair = CoTrainedPair(*(nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2)) for _ in "ab"))
    averaged = AveragedPair(pair, momentum=0.75)
    weight = pair.sub_network_b[0].weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight += 1
    pair(torch.rand(2, 1, 3, 3, 3))  # moves the running statistics
    averaged.update(pair)
    torch.testing.assert_close(averaged.pair.sub_network_b[0].weight, before + 0.25)
    for name, value in pair.named_buffers():
        torch.testing.assert_close(dict(averaged.pair.named_buffers())[name], value, rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in averaged.pair.parameters())
