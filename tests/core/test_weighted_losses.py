# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from golden import assert_golden, labels_of, logits_of
from losses_of_logits import cross_entropy_alone, cross_entropy_and_dice, sums_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import nnunet_dhc.core.loss_sums as loss_sums
import nnunet_dhc.core.voxel_pieces as voxel_pieces
from nnunet_dhc.core.label_spaces import ClassLabels, LabelSpace, RegionLabels
from nnunet_dhc.core.loss_sums import Reading, softmax_sums_of
from nnunet_dhc.core.weighted_losses import weighted_soft_dice_loss

SIX_VOXELS = ((2, 0, 0, 0), (0, 1, 0, 0), (0, 0, 3, 0), (1, 1, 0, 0), (0, 0, 0, 0.5), (2, 0, 0, 1))
TARGET = (0, 1, 2, 1, 3, 0)
DISTRIBUTION_WEIGHTS = (0, 4 / 3, 8 / 3, 4)


@pytest.mark.parametrize(
    ("weights", "cross_entropy", "dice"),
    [
        (None, 0.626740, -0.652718),
        ((1, 1, 1, 1), 0.626740, -0.652718),
        (DISTRIBUTION_WEIGHTS, 0.734038, -1.712863),
        ((4, 2, 1, 0.5), 0.555253, -0.767588),
    ],
)
def test_golden_values(weights: tuple[float, ...] | None, cross_entropy: float, dice: float) -> None:
    class_weights = None if weights is None else torch.tensor(weights)
    arguments = (logits_of(SIX_VOXELS), labels_of(TARGET), class_weights)
    labels = ClassLabels(4)
    assert_golden(cross_entropy_alone(labels, *arguments)[0], cross_entropy)
    both = cross_entropy_and_dice(labels, *arguments, smooth=1.0, pooled_over_batch=True)
    assert_golden(both[0], cross_entropy)
    assert_golden(both[1], dice)
    hits = sum(weights[y] for y in TARGET) if weights else 6.0
    assert_golden(both[2], hits)


def test_golden_dice_of_the_classes() -> None:
    sums = sums_of(ClassLabels(4), logits_of(SIX_VOXELS), labels_of(TARGET))
    one_hot = torch.eye(4)
    foreground = [-4 * weighted_soft_dice_loss(sums, one_hot[k], smooth=1.0) for k in (1, 2, 3)]
    assert_golden(torch.stack(foreground), (0.626854, 0.766813, 0.564487))
    every = [-4 * weighted_soft_dice_loss(sums, one_hot[k], smooth=1e-8) for k in range(4)]
    assert_golden(torch.stack(every), (0.641462, 0.513027, 0.676197, 0.349748))


@pytest.mark.parametrize("gradient_scale", [1.0, 65536.0])
@pytest.mark.parametrize("labels", [ClassLabels(4), ClassLabels(4, ignore_label=4)])
def test_no_weight_hit_is_a_connected_zero(labels: LabelSpace, gradient_scale: float) -> None:
    # the reference: NaN, with NaN gradients
    logits = logits_of(SIX_VOXELS).requires_grad_()
    loss, hit_weight = cross_entropy_alone(labels, logits, labels_of([0] * 6), torch.tensor(DISTRIBUTION_WEIGHTS))
    assert loss == 0 and hit_weight == 0
    (gradient,) = torch.autograd.grad(loss * gradient_scale, logits)
    assert torch.equal(gradient, torch.zeros_like(logits))


def test_vanishing_weights_still_give_a_mean() -> None:
    # SimiS' background weight decays towards 0; an all-background batch keeps its plain cross entropy until it is 0
    logits = logits_of(SIX_VOXELS).requires_grad_()
    loss, _ = cross_entropy_alone(ClassLabels(4), logits, labels_of([0] * 6), torch.tensor([1e-30, 4, 4, 4]))
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.zeros(1, 6, 1, 1, dtype=torch.long)))
    assert torch.autograd.grad(65536 * loss, logits)[0].isfinite().all()


def test_everything_ignored() -> None:
    logits = logits_of(SIX_VOXELS).requires_grad_()
    labels = ClassLabels(4, ignore_label=4)
    for weights, smooth in ((None, 1e-5), (torch.ones(4), 1e-5), (torch.ones(4), 0.0)):
        cross_entropy, dice, hits = cross_entropy_and_dice(labels, logits, labels_of([4] * 6), weights, smooth, True)
        assert cross_entropy == 0 and hits == 0 and dice.isfinite()
        assert torch.equal(torch.autograd.grad(cross_entropy + dice, logits)[0], torch.zeros_like(logits))


def _random(k: int, dtype: torch.dtype = torch.float32, ignore: bool = False) -> tuple[Tensor, Tensor]:
    torch.manual_seed(k)
    logits = (2 * torch.randn(3, k, 5, 4, 6)).to(dtype).requires_grad_()
    return logits, torch.randint(0, k + ignore, (3, 1, 5, 4, 6))


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("ignore_label", [None, 5])
def test_unweighted_equals_nnunet(batch_dice: bool, ignore_label: int | None) -> None:
    compound = pytest.importorskip("nnunetv2.training.loss.compound_losses")
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    stock = compound.DC_and_CE_loss(
        {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False},
        {},
        ignore_label=ignore_label,
        dice_class=MemoryEfficientSoftDiceLoss,
    )
    logits, target = _random(5, ignore=ignore_label is not None)
    cross_entropy, dice, _ = cross_entropy_and_dice(
        ClassLabels(5, ignore_label), logits, target, None, smooth=1e-5, pooled_over_batch=batch_dice
    )
    expected = stock(logits, target)
    torch.testing.assert_close(cross_entropy + dice, expected)
    torch.testing.assert_close(
        torch.autograd.grad(cross_entropy + dice, logits)[0], torch.autograd.grad(expected, logits)[0]
    )


@pytest.mark.parametrize("batch_dice", [True, False])
def test_unweighted_regions_equal_nnunet(batch_dice: bool) -> None:
    compound = pytest.importorskip("nnunetv2.training.loss.compound_losses")
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    stock = compound.DC_and_BCE_loss(
        {},
        {"batch_dice": batch_dice, "do_bg": True, "smooth": 1e-5, "ddp": False},
        dice_class=MemoryEfficientSoftDiceLoss,
    )
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 5, 4, 6, requires_grad=True), torch.rand(2, 3, 5, 4, 6) > 0.7
    cross_entropy, dice, _ = cross_entropy_and_dice(RegionLabels(3), logits, target, None, 1e-5, batch_dice)
    expected = stock(logits, target)
    torch.testing.assert_close(cross_entropy + dice, expected)
    torch.testing.assert_close(
        torch.autograd.grad(cross_entropy + dice, logits)[0], torch.autograd.grad(expected, logits)[0]
    )


def _plain_losses(logits: Tensor, target: Tensor, weights: Tensor, ignore: int, smooth: float, pooled: bool) -> Tensor:
    """The equations on a one-hot target, without any economy."""
    k = logits.shape[1]
    valid = (target != ignore).to(logits.dtype)
    truth = F.one_hot(torch.where(target == ignore, 0, target)[:, 0], k).movedim(-1, 1).to(logits.dtype) * valid
    log_probs = logits.log_softmax(1)
    probs = log_probs.exp() * valid
    w = weights.reshape(1, k, 1, 1, 1)
    cross_entropy = -(w * truth * log_probs).sum() / (w * truth).sum()
    axes = (0, 2, 3, 4) if pooled else (2, 3, 4)
    dice = (2 * (probs * truth).sum(axes) + smooth) / (probs.sum(axes) + truth.sum(axes) + smooth)
    return cross_entropy - 0.7 * (dice[..., 1:] * weights[1:]).mean()


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("ignore", [True, False])
@pytest.mark.parametrize("piece", [1 << 20, 4 * 120, 4 * 50])
def test_values_and_gradients_are_those_of_the_equations(
    pooled: bool, ignore: bool, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # in float64; all samples at once, one after the other, and each of their 120 voxels in three unequal pieces
    monkeypatch.setattr(voxel_pieces, "CPU_PIECE_ELEMENTS", piece)
    logits, target = _random(4, torch.float64, ignore)
    weights = torch.tensor([0.0, 0.3, 1.7, 4.0], dtype=torch.float64)
    expected = _plain_losses(logits, target, weights, 4, 0.5, pooled)
    labels = ClassLabels(4, ignore_label=4 if ignore else None)
    cross_entropy, dice, _ = cross_entropy_and_dice(labels, logits, target, weights, 0.5, pooled)
    actual = cross_entropy + 0.7 * dice
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, logits)[0], torch.autograd.grad(expected, logits)[0])
    alone, _ = cross_entropy_alone(labels, logits, target, weights)
    torch.testing.assert_close(alone, cross_entropy)
    torch.testing.assert_close(
        torch.autograd.grad(alone, logits)[0],
        torch.autograd.grad(cross_entropy_and_dice(labels, logits, target, weights, 0.5, pooled)[0], logits)[0],
    )


@pytest.mark.parametrize("piece", [1 << 20, 4 * 50])
def test_targets_of_the_same_samples_have_the_sums_of_each_alone(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labeled patches may have a Dice term against the reference and one against a pseudo label."""
    monkeypatch.setattr(voxel_pieces, "CPU_PIECE_ELEMENTS", piece)
    logits, target = _random(4, torch.float64, ignore=True)
    readings = [Reading(target, ignore_label=4), Reading(target.flip(2) % 4), Reading(target[:1] % 4, first=2)]
    names = ("cross_entropy", "intersection", "predicted", "labeled")
    together, alone = (
        [getattr(sums, name) for sums in found for name in names]
        for found in (softmax_sums_of(logits, readings), [softmax_sums_of(logits, [one])[0] for one in readings])
    )
    torch.testing.assert_close(together, alone)
    gradients = (torch.autograd.grad(sum((v**2).sum() for v in values), logits)[0] for values in (together, alone))
    torch.testing.assert_close(*gradients)


def test_the_way_of_accelerators_gives_the_same_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, target = _random(4, ignore=True)
    labels = ClassLabels(4, ignore_label=4)
    expected = sums_of(labels, logits, target)
    monkeypatch.setattr(loss_sums, "_per_class", loss_sums._scatter_per_class)
    actual = sums_of(labels, logits, target)
    for name in ("cross_entropy", "hits", "intersection", "predicted", "labeled"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name))


def _operations(num_samples: int) -> int:
    """How many operations an accelerator is given for the sums and their gradient; none is computed."""

    class Counter(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.number += 1
            return function(*args, **(kwargs or {}))

    logits = torch.empty(num_samples, 14, 64, 64, device="meta", requires_grad=True)
    target = torch.empty(num_samples, 1, 64, 64, dtype=torch.int16, device="meta")
    with Counter() as counter:
        sums = sums_of(ClassLabels(logits.shape[1]), logits, target)
        (sums.cross_entropy.sum() + sums.intersection.sum() + sums.predicted.sum()).backward()
    return counter.number


def test_operations_of_an_accelerator_do_not_grow_with_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _operations(24) == _operations(2)
    monkeypatch.setattr(voxel_pieces, "PIECE_ELEMENTS", 14 * 64 * 64)
    assert _operations(24) > 10 * _operations(2) / 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("labels", [ClassLabels(4), RegionLabels(4)], ids=["classes", "regions"])
def test_half_precision_logits_are_computed_in_float32(dtype: torch.dtype, labels: LabelSpace) -> None:
    torch.manual_seed(0)
    half = (4 * torch.randn(2, 4, 6, 5, 4)).to(dtype).requires_grad_()
    full = half.detach().float().requires_grad_()
    target = labels.pseudo_label(torch.randn(2, 4, 6, 5, 4))
    weights = torch.rand(labels.num_classes)
    results = []
    for logits in (half, full):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=logits is half):
            cross_entropy, dice, hits = cross_entropy_and_dice(labels, logits, target, weights, 1e-5, True)
        assert cross_entropy.dtype == dice.dtype == hits.dtype == torch.float32
        gradient = torch.autograd.grad(cross_entropy + dice, logits)[0]
        assert gradient.dtype == logits.dtype
        results.append((cross_entropy, dice, hits, gradient.float()))
    for a, b in zip(results[0][:3], results[1][:3], strict=True):
        torch.testing.assert_close(a, b)
    tolerance = torch.finfo(dtype).eps
    torch.testing.assert_close(results[0][3], results[1][3], rtol=tolerance, atol=tolerance * 1e-2)


def test_large_logits_stay_finite() -> None:
    # a gap of 2e4 underflows every softmax; the loss is the gap
    logits = torch.zeros(1, 3, 2, 2, 2)
    logits[:, 0] = 2e4
    logits.requires_grad_()
    cross_entropy, dice, _ = cross_entropy_and_dice(
        ClassLabels(3), logits, torch.ones(1, 1, 2, 2, 2, dtype=torch.int16), None, 1e-5, True
    )
    assert_golden(cross_entropy, 2e4)
    assert torch.autograd.grad(cross_entropy + dice, logits)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_targets_of_any_integer_dtype(dtype: torch.dtype) -> None:
    logits, target = _random(4, ignore=True)
    labels = ClassLabels(4, ignore_label=4)
    expected = cross_entropy_and_dice(labels, logits, target, None, 1e-5, True)
    actual = cross_entropy_and_dice(labels, logits, target.to(dtype), None, 1e-5, True)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_channels_last_and_two_dimensions() -> None:
    logits, target = _random(4)
    labels = ClassLabels(4)
    expected = cross_entropy_and_dice(labels, logits, target, None, 1e-5, True)
    permuted = logits.detach().contiguous(memory_format=torch.channels_last_3d)
    flat = cross_entropy_and_dice(labels, logits.flatten(3), target.flatten(3), None, 1e-5, True)
    last = cross_entropy_and_dice(labels, permuted, target, None, 1e-5, True)
    for a, b, c in zip(expected, flat, last, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)


def test_sums_of_two_batches_join_to_those_of_one() -> None:
    logits, target = _random(4)
    labels, weights = ClassLabels(4), torch.rand(4)
    joined = sums_of(labels, logits[:1], target[:1]).join(sums_of(labels, logits[1:], target[1:]))
    for pooled in (True, False):
        expected = cross_entropy_and_dice(labels, logits, target, weights, 1.0, pooled)
        torch.testing.assert_close(labels.cross_entropy_of(joined, weights)[0], expected[0])
        torch.testing.assert_close(labels.soft_dice_loss_of(joined, weights, 1.0, pooled), expected[1])
    without = sums_of(labels, logits[:1], target[:1], overlap=False).join(sums_of(labels, logits[1:], target[1:]))
    with pytest.raises(ValueError, match="overlap"):
        labels.soft_dice_loss_of(without, weights, 1.0, True)


@pytest.mark.parametrize("labels", [ClassLabels(4), RegionLabels(4)], ids=["classes", "regions"])
def test_wrong_shapes(labels: LabelSpace) -> None:
    with pytest.raises(ValueError, match="does not belong"):
        cross_entropy_alone(labels, torch.zeros(2, 4, 3, 3, 3), torch.zeros(2, 4, 3, 3, 2, dtype=torch.long), None)


def test_cross_entropy_ignores_the_scale_of_the_weights_and_dice_follows_it() -> None:
    logits, target = _random(4)
    weights = torch.tensor([0.0, 1.0, 2.0, 3.0])
    one = cross_entropy_and_dice(ClassLabels(4), logits, target, weights, 1.0, True)
    ten = cross_entropy_and_dice(ClassLabels(4), logits, target, 10 * weights, 1.0, True)
    torch.testing.assert_close(ten[0], one[0])
    torch.testing.assert_close(ten[1], 10 * one[1])


def test_region_losses_by_hand() -> None:
    # two voxels, two regions, all logits 0: every BCE is ln 2, every probability 1/2
    logits = torch.zeros(1, 2, 2, 1, 1)
    target = torch.tensor([[True, False], [True, True]]).reshape(1, 2, 2, 1, 1)
    labels, weights = RegionLabels(2), torch.tensor([9.0, 1.0, 3.0])  # weight 0 must not matter
    cross_entropy, hits = cross_entropy_alone(labels, logits, target, weights)
    assert_golden(cross_entropy, math.log(2))
    assert_golden(hits, 2 * (1 + 3))
    # region 1: 2 * 0.5 / (1 + 1) = 1/2; region 2: 2 * 1 / (1 + 2) = 2/3
    assert_golden(cross_entropy_and_dice(labels, logits, target, weights, 0.0, True)[1], -(1 * 1 / 2 + 3 * 2 / 3) / 2)
    # with region 1 at logit 1 its mean BCE is (softplus(-1) + softplus(1)) / 2
    logits[:, 0] = 1.0
    bce = (math.log1p(math.exp(-1)) + math.log1p(math.exp(1))) / 2
    assert_golden(cross_entropy_alone(labels, logits, target, weights)[0], (bce + 3 * math.log(2)) / 4)


def test_regions_without_weight_and_ignored_voxels() -> None:
    torch.manual_seed(0)
    labels = RegionLabels(2, has_ignore_channel=True)
    logits = torch.randn(2, 2, 4, 4, 4, requires_grad=True)
    target = torch.rand(2, 3, 4, 4, 4) > 0.5
    loss, hits = cross_entropy_alone(labels, logits, target, torch.tensor([1.0, 0.0, 0.0]))
    assert loss == 0 and hits == 0
    assert torch.equal(torch.autograd.grad(loss, logits)[0], torch.zeros_like(logits))
    both = cross_entropy_and_dice(labels, logits, target, torch.tensor([0.0, 1.0, 2.0]), 1e-5, True)
    gradient = torch.autograd.grad(both[0] + both[1], logits)[0]
    assert (gradient[target[:, 2:].expand_as(gradient)] == 0).all()
    assert (gradient[~target[:, 2:].expand_as(gradient)] != 0).all()


def test_pseudo_labels_and_weights_carry_no_gradient() -> None:
    torch.manual_seed(0)
    a, b = (torch.randn(2, 4, 4, 4, 4, requires_grad=True) for _ in range(2))
    labels = ClassLabels(4)
    pseudo = labels.pseudo_label(b)
    assert not pseudo.requires_grad
    weights = torch.rand(4, requires_grad=True)
    loss = sum(cross_entropy_and_dice(labels, a, pseudo, weights, 1.0, True)[:2])
    gradients = torch.autograd.grad(loss, [a, b, weights], allow_unused=True)
    assert gradients[0].abs().sum() > 0
    assert gradients[1] is None and gradients[2] is None
