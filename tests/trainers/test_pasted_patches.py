# SPDX-License-Identifier: Apache-2.0
"""Unlabeled patches that exchange a box with labeled ones."""

from __future__ import annotations

import pytest
import torch
from tiny_training import log_lines, make_trainer
from two_ranks import batches, start

from nnunet_dhc.core.pasting import box_masks
from nnunet_dhc.nnunet.training import pair_trainer
from nnunet_dhc.nnunet.training.pasted_patches import mixed_with_labeled, running_statistics_kept
from nnunet_dhc.nnunet.training.whole_step import StepInputs

IGNORE = {"background": 0, "large": 1, "middle": 2, "small": 3, "ignore": 4}


def started(dataset, **settings):
    """A trainer in float64 before its first step; no case is loaded."""
    trainer = make_trainer(dataset, lambda_max=1.0, ramp_length=0.0, unsupervised_on="unlabeled", **settings)
    trainer.print_to_log_file = lambda *_, **__: None
    start(trainer)
    return trainer


def mixed(trainer, batch, side: float = 0.5):
    """Images, targets and the mask that they were mixed by."""
    torch.manual_seed(4)
    masks = box_masks(3, (8, 8, 8), side)
    images = torch.cat((batch["data"], batch["unlabeled"]))
    inputs = StepInputs(images, batch["target"], True, 1.0, paste_masks=masks)
    mixed_at_once, mixed = (mixed_with_labeled(trainer, inputs, number) for number in (None, 2))
    assert torch.equal(mixed.images, mixed_at_once.images) and mixed.paste_masks is None
    assert all(map(torch.equal, mixed.unlabeled_targets, mixed_at_once.unlabeled_targets))
    assert torch.equal(mixed.images[:3], batch["data"])
    return mixed.images[3:], mixed.unlabeled_targets, masks


def test_pseudo_labels_are_those_of_the_whole_unlabeled_patch(tiny_dataset) -> None:
    trainer, batch = started(tiny_dataset, paste_side=0.5), batches(1)[0]
    images, targets, masks = mixed(trainer, batch)
    assert torch.equal(images, torch.where(masks, batch["data"], batch["unlabeled"]))
    with torch.no_grad():
        network_a, network_b = trainer.pair.sub_networks
        peers = [network(batch["unlabeled"])[0].argmax(1, keepdim=True) for network in (network_b, network_a)]
    assert not torch.equal(*peers)
    for target, peer in zip(targets, peers, strict=True):
        assert torch.equal(target.long(), torch.where(masks, batch["target"][0], peer))
        assert not target.requires_grad


def test_plain_patches_leave_no_trace_in_running_statistics() -> None:
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 1), torch.nn.BatchNorm3d(2, momentum=0.25))
    norm = network[1]
    with running_statistics_kept(network), torch.no_grad():
        normalized = network(torch.randn(2, 1, 4, 4, 4) + 3)
    assert torch.equal(norm.running_mean, torch.zeros(2)) and torch.equal(norm.running_var, torch.ones(2))
    torch.testing.assert_close(normalized.mean((0, 2, 3, 4)), torch.zeros(2), atol=1e-5, rtol=0)  # by its own batch
    network(torch.ones(2, 1, 4, 4, 4))
    assert norm.momentum == 0.25 and not torch.equal(norm.running_mean, torch.zeros(2))


def test_pseudo_labels_of_the_mean_of_both_networks(tiny_dataset) -> None:
    trainer, batch = started(tiny_dataset, paste_side=0.5, teacher="mean"), batches(1)[0]
    _, targets, masks = mixed(trainer, batch)
    with torch.no_grad():
        logits_a, logits_b = (network(batch["unlabeled"])[0] for network in trainer.pair.sub_networks)
    expected = torch.where(masks, batch["target"][0], ((logits_a + logits_b) / 2).argmax(1, keepdim=True))
    assert all(torch.equal(target.long(), expected) for target in targets)
    assert not torch.equal(expected, torch.where(masks, batch["target"][0], logits_b.argmax(1, keepdim=True)))


def test_pseudo_labels_of_averaged_weights(tiny_dataset) -> None:
    """The average follows the weights at its momentum, has no gradient, and makes the pseudo labels."""
    trainer, batch = started(tiny_dataset, paste_side=0.5, teacher_momentum=0.75), batches(1)[0]
    average = trainer.averaged_pair
    before = [parameter.clone() for parameter in trainer.pair.parameters()]
    for parameter, mine in zip(before, average.pair.parameters(), strict=True):
        assert torch.equal(parameter, mine)
    trainer.train_step(batch)
    moved = 0
    for old, new, mine in zip(before, trainer.pair.parameters(), average.pair.parameters(), strict=True):
        torch.testing.assert_close(mine, 0.75 * old + 0.25 * new.detach())
        assert mine.grad is None
        moved += not torch.equal(old, new)
    assert moved
    with torch.no_grad():
        for parameter in average.pair.parameters():
            parameter.normal_()
        peers = [network(batch["unlabeled"])[0].argmax(1, keepdim=True) for network in average.pair.sub_networks[::-1]]
    _, targets, masks = mixed(trainer, batch)
    for target, peer in zip(targets, peers, strict=True):
        assert torch.equal(target.long(), torch.where(masks, batch["target"][0], peer))


def test_ignored_voxels_are_ignored_where_they_are_pasted(tiny_dataset, monkeypatch) -> None:
    monkeypatch.setattr(type(tiny_dataset), "dataset_json", {**tiny_dataset.dataset_json, "labels": IGNORE})
    trainer, batch = started(tiny_dataset, paste_side=0.5), batches(1)[0]
    for target in batch["target"]:
        target[0] = 4
    _, targets, masks = mixed(trainer, batch)
    for target in targets:
        assert (target[0][masks[0]] == 4).all() and (target[0][~masks[0]] < 4).all()
    assert torch.isfinite(torch.as_tensor(trainer.train_step(batch)["loss"]))


def test_what_lies_in_the_box_is_learned_from_the_reference(tiny_dataset, monkeypatch) -> None:
    """With the whole patch as box, nothing of the pseudo labels is left in the loss, only in the class weights."""
    monkeypatch.setattr(pair_trainer, "box_masks", lambda *_: torch.ones(3, 1, 8, 8, 8, dtype=torch.bool))
    batch = batches(1)[0]
    other = {**batch, "unlabeled": batch["unlabeled"] + 1}
    losses = []
    for step in (batch, other):
        trainer = started(tiny_dataset, paste_side=0.5, weighting_a="none", weighting_b="none")
        losses.append(float(trainer.train_step(step)["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


@pytest.mark.parametrize("low_memory", ["off", "on"])
def test_shares_are_those_of_what_the_networks_say_of_the_plain_patches(tiny_dataset, low_memory) -> None:
    """A class that is dead on all unlabeled scans must not look alive because its labeled voxels were pasted in."""
    trainer, batch = started(tiny_dataset, paste_side=0.5, low_memory=low_memory), batches(1)[0]
    with torch.no_grad():
        predicted = [network(batch["unlabeled"])[0].argmax(1) for network in trainer.pair.sub_networks]
    expected = [torch.bincount(labels.flatten(), minlength=4).double() / labels.numel() for labels in predicted]
    trainer.train_step(batch)
    read = trainer.statistics.read()
    for of_network, share in zip(expected, ("pseudo_label_share_a", "pseudo_label_share_b"), strict=True):
        torch.testing.assert_close(torch.tensor(read[share]).double(), of_network)


def test_setting_changes_the_step(tiny_dataset) -> None:
    losses = []
    for settings in ({"paste_side": 0.0}, {"paste_side": 0.5}):
        trainer = started(tiny_dataset, **settings)
        torch.manual_seed(4)
        losses.append(float(trainer.train_step(batches(1)[0])["loss"]))
    assert losses[0] != losses[1]


def test_training_with_pasted_patches(tiny_dataset) -> None:
    trainer = make_trainer(
        tiny_dataset,
        paste_side=0.5,
        unlabeled_schedule="always",
        unsupervised_dice=1.0,
        teacher="mean",
        teacher_momentum=0.9,
    )
    trainer.run_training()
    assert [line["epoch"] for line in log_lines(trainer)] == [0, 1]
    assert all(line["unsupervised_gradient_share"] > 0 for line in log_lines(trainer)[1:])
