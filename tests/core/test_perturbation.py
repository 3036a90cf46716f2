# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from nnunet_dhc.core.perturbation import perturbed


def test_gain_offset_and_noise_have_the_size_that_is_asked_for() -> None:
    torch.manual_seed(0)
    images = torch.linspace(-1, 1, 4096, dtype=torch.float64).reshape(16, 16, 16).expand(300, 2, 16, 16, 16)
    changed = perturbed(images, 0.2)
    assert changed.shape == images.shape and changed.dtype == images.dtype
    line = images[0, 0].flatten()
    flat = changed.flatten(2)
    offsets = flat.mean(2)  # the line has a mean of 0
    gains = (flat * line).mean(2) / (line * line).mean()
    noise = flat - offsets[..., None] - gains[..., None] * line
    assert offsets.std().item() == pytest.approx(0.2, rel=0.1) and abs(offsets.mean().item()) < 0.03
    assert gains.log().std().item() == pytest.approx(0.2, rel=0.1) and abs(gains.log().mean().item()) < 0.03
    assert noise.std().item() == pytest.approx(0.2, rel=0.01)
    assert len(offsets.unique()) == len(gains.unique()) == 600  # each patch and channel for itself


def test_strength_0_changes_nothing() -> None:
    images = torch.rand(2, 1, 5, 4)
    assert torch.equal(perturbed(images, 0.0), images)


def test_seed_decides() -> None:
    images, results = torch.rand(2, 1, 5, 4), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(perturbed(images, 0.1))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
