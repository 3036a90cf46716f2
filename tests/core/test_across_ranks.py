# SPDX-License-Identifier: Apache-2.0
"""Two gloo processes, each with a part of a batch, against one process with the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from losses_of_logits import cross_entropy_and_dice
from torch import Tensor, nn

from nnunet_dhc.core import ClassWeighting, CReST, DiffDW, DistDW, SimiS
from nnunet_dhc.core.across_ranks import differentiable_sum_across_ranks, num_ranks, sum_across_ranks
from nnunet_dhc.core.class_counts import hard_dice
from nnunet_dhc.core.label_spaces import ClassLabels, LabelSpace, RegionLabels

K = 4
ROWS = [slice(0, 1), slice(1, 3)]  # rank 0 has one sample, rank 1 two


def _data() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    image = torch.randn(3, 2, 4, 5, 6)
    target = torch.randint(0, K + 1, (3, 1, 4, 5, 6))
    target[0][target[0] == 3] = 0  # class 3 is on rank 1 only
    return image, target, torch.rand(3, K + 1, 4, 5, 6) > 0.6


def _network() -> nn.Conv3d:
    torch.manual_seed(1)
    return nn.Conv3d(2, K, 3, padding=1).double()


def _compute(rows: slice, across_ranks: bool) -> dict[str, Any]:
    """Losses, gradients (averaged over ranks, as DistributedDataParallel does) and weights."""
    image, target, regions = (tensor[rows] for tensor in _data())
    network = _network()
    result: dict[str, Any] = {}
    cases: list[tuple[str, LabelSpace, Tensor, Tensor | None]] = [
        ("classes", ClassLabels(K, ignore_label=K), target, torch.tensor([0.5, 1.0, 2.0, 4.0])),
        ("unweighted", ClassLabels(K, ignore_label=K), target, None),
        # on rank 0 no voxel has a weight
        ("one rank without weight", ClassLabels(K, ignore_label=K), target, torch.tensor([0.0, 0.0, 0.0, 4.0])),
        ("no weight at all", ClassLabels(K), torch.zeros_like(target), torch.tensor([0.0, 1.0, 1.0, 1.0])),
        ("regions", RegionLabels(K, has_ignore_channel=True), regions, torch.tensor([0.0, 0.5, 1.0, 2.0, 4.0])),
    ]
    for name, labels, truth, weights in cases:
        for pooled in (True, False):
            network.zero_grad()
            ce, dice, hits = cross_entropy_and_dice(
                labels, network(image.double()), truth, weights, 1e-5, pooled, across_ranks
            )
            (ce + dice).backward()
            assert network.weight.grad is not None
            values = torch.stack([ce.detach(), dice.detach()])
            result[f"{name}, pooled={pooled}"] = {
                "loss": sum_across_ranks(values) / num_ranks(),
                "hits": hits,
                "gradient": sum_across_ranks(network.weight.grad) / num_ranks(),
            }

    labels = ClassLabels(K, ignore_label=K)
    weightings: list[ClassWeighting] = [DistDW(K), CReST(K), SimiS(K), DiffDW(K)]
    for step in range(3):
        prediction = labels.pseudo_label(network(image.double() + step))
        counts = sum_across_ranks(labels.count(prediction))
        dice = hard_dice(*(sum_across_ranks(n) for n in labels.overlap(prediction, target)))
        for weighting in weightings:
            weighting.update(dice if weighting.reads == "labeled_dice" else counts)
    result["weights"] = {type(w).__name__: w.state_dict() for w in weightings}
    return result


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(_compute(ROWS[rank], across_ranks=True), f"{folder}/{rank}.pt")
    dist.barrier()  # and no destroy_process_group, in which the gloo of torch 2.5 can hang


def test_two_ranks_equal_the_joined_batch(tmp_path: Path) -> None:
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    joined = _compute(slice(0, 3), across_ranks=False)
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), joined)


def test_without_distributed_there_is_one_rank() -> None:
    value = torch.rand(3, requires_grad=True)
    assert num_ranks() == 1
    torch.testing.assert_close(sum_across_ranks(value), value.detach(), rtol=0, atol=0)
    assert differentiable_sum_across_ranks(value) is value
