# SPDX-License-Identifier: Apache-2.0
"""What the losses of a co-training step need of its voxels, patch by patch, and the way back from losses to patches.

The objective of a step couples its patches: a cross entropy divides by the weights hit in all of them, a pooled Dice is
a quotient of sums over all of them. But it does so through `LossSums` only, which are made patch by patch. So the
gradient of the whole step is the sum, over groups of patches, of

    d L / d parameters = sum_g sum_i (d L / d sums_gi) * (d sums_gi / d parameters)

and once the sums of all groups are known (without a graph), each group can run forward and backward by itself, with
d L / d sums as constants.

Source: own; the chain rule over sums, as gradient caching does it for contrastive losses (Gao et al., RepL4NLP 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nnunet_dhc.core.loss_sums import LossSums

DIFFERENTIABLE = ("cross_entropy", "intersection", "predicted")
Key = tuple[str, int, str]
"""Term ("supervised" or "unsupervised"), output, name of the sum."""
Gradients = dict[Key, Tensor]


@dataclass(frozen=True)
class TermSums:
    """Sums of one network, by deep-supervision output, full resolution first; None where a term has no patch.

    Args:
        supervised: Of its logits against the reference.
        unsupervised: Of its logits against the other network's pseudo label.
    """

    supervised: tuple[LossSums | None, ...]
    unsupervised: tuple[LossSums | None, ...]

    def tensors(self) -> dict[Key, Tensor]:
        """The sums that carry gradients, shape (b, k) each, by term, output and name."""
        return {
            (term, output, name): value
            for term in ("supervised", "unsupervised")
            for output, sums in enumerate(getattr(self, term))
            if sums is not None
            for name in DIFFERENTIABLE
            if (value := getattr(sums, name)) is not None
        }

    def as_leaves(self) -> TermSums:
        """The same numbers as the start of a new graph."""

        def leaf(sums: LossSums | None) -> LossSums | None:
            if sums is None:
                return None
            values = {name: getattr(sums, name) for name in DIFFERENTIABLE}
            return replace(sums, **{n: v.detach().requires_grad_() for n, v in values.items() if v is not None})

        return TermSums(tuple(map(leaf, self.supervised)), tuple(map(leaf, self.unsupervised)))


def join_sums(groups: Sequence[TermSums]) -> TermSums:
    """The sums of all groups as one batch.

    Args:
        groups: Sums of one network on a few patches each, at least one group.

    Returns:
        Sums whose first axis has the patches of all groups, in their order.
    """

    def join(parts: Sequence[LossSums | None]) -> LossSums | None:
        known = [part for part in parts if part is not None]
        if len(known) < 2:
            return known[0] if known else None
        joined = known[0]
        for part in known[1:]:
            joined = joined.join(part)
        return joined

    return TermSums(
        tuple(join(parts) for parts in zip(*(group.supervised for group in groups), strict=True)),
        tuple(join(parts) for parts in zip(*(group.unsupervised for group in groups), strict=True)),
    )


def gradients_by_group(
    loss: Tensor, leaves: Sequence[TermSums], groups: Sequence[Sequence[TermSums]]
) -> list[list[Gradients]]:
    """Gradient of a loss with respect to the sums of each group of each network.

    Args:
        loss: Scalar, made from `leaves`.
        leaves: Joined sums of each network, from `TermSums.as_leaves`.
        groups: The same sums before they were joined: by network, then by group.

    Returns:
        By network and group: gradients of the shapes of `TermSums.tensors()`, without those that are 0 throughout.
    """
    tensors = [network.tensors() for network in leaves]
    flat = [value for network in tensors for value in network.values()]
    gradients = iter(torch.autograd.grad(loss, flat, allow_unused=True))
    result = []
    for network, parts in zip(tensors, groups, strict=True):
        whole: dict[Key, Tensor | None] = dict(zip(network, gradients, strict=False))
        start = dict.fromkeys(whole, 0)
        result.append([_cut(whole, start, part.tensors()) for part in parts])
    return result


def _cut(whole: dict[Key, Tensor | None], start: dict[Key, int], part: dict[Key, Tensor]) -> Gradients:
    """The rows of one group; moves `start` to the next one."""
    rows = {}
    for key, value in part.items():
        first, start[key] = start[key], start[key] + value.shape[0]
        gradient = whole[key]
        if gradient is not None:
            rows[key] = gradient[first : start[key]]
    return rows


def backward_from_sums(sums: TermSums, gradients: Gradients) -> None:
    """Add a group's part of the gradient to the parameters that its sums were made with.

    Args:
        sums: Of one group, with their graph.
        gradients: What `gradients_by_group` found for it.
    """
    tensors = sums.tensors()
    if gradients:
        torch.autograd.backward([tensors[key] for key in gradients], list(gradients.values()))
