# SPDX-License-Identifier: Apache-2.0
"""A sub-network abstains from classes that it hasn't learned: in training, in checkpoints, in prediction."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_training import log_lines, make_trainer, resumed

from nnunet_dhc.core import votes
from nnunet_dhc.core.votes import combined_logits
from nnunet_dhc.nnunet.network.averaged_pair import AveragedPair
from nnunet_dhc.nnunet.network.cotrained_pair import CoTrainedPair
from nnunet_dhc.nnunet.network.predictor import trained_predictor


def heads_that_say(trainer, *favorites: int) -> None:
    """Let each network paint one class everywhere, before it has learned anything."""
    with torch.no_grad():
        for network, favorite in zip(trainer.pair.sub_networks, favorites, strict=True):
            for head in network.decoder.seg_layers:
                head.weight.zero_()
                head.bias.copy_(40 * torch.eye(4)[favorite])


def test_a_network_has_no_say_in_what_it_has_not_learned(tiny_dataset, no_process_pools, monkeypatch, capsys):
    monkeypatch.setattr(votes, "LEARNED", 0.01)  # what is painted everywhere has a low Dice
    trainer = make_trainer(tiny_dataset)
    trainer.initialize()
    heads_that_say(trainer, 1, 2)
    trainer.run_training()
    assert log_lines(trainer)[-1]["votes_a"] == [1.0, 0.0, 0.5]
    assert log_lines(trainer)[-1]["training_dice_b"][1] > 0 == log_lines(trainer)[-1]["training_dice_a"][1]
    assert "B has no say in what it hasn't learned: " in capsys.readouterr().out
    for name in ("checkpoint_final.pth", "checkpoint_best.pth"):
        predictor = trained_predictor(Path(trainer.output_folder).parent, (0,), name, torch.device("cpu"))
        pair = predictor.network
        pair.load_state_dict(predictor.list_of_parameters[0])
        assert pair.votes.tolist() == [[0.5, 1.0, 0.0, 0.5], [0.5, 0.0, 1.0, 0.5]]
        images = torch.rand(1, 1, *trainer.configuration_manager.patch_size)
        with torch.no_grad():
            says = pair(images)
            with pair.giving("both"):
                a, b = pair(images)
        torch.testing.assert_close(says, combined_logits(a, b, pair.votes))
    assert resumed(tiny_dataset, trainer, "checkpoint_best.pth").pair.votes is not None


def test_in_the_mean_of_the_paper_both_always_have_half(tiny_dataset):
    trainer = make_trainer(tiny_dataset, "nnUNetTrainerDHCPaper")
    trainer.initialize()
    heads_that_say(trainer, 1, 2)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    trainer.on_train_epoch_end([])
    assert trainer.pair.votes is None


def test_votes_are_saved_only_where_somebody_abstains():
    """So that checkpoints from before there were votes, and those without, are read alike, one after the other."""
    pair = CoTrainedPair(torch.nn.Conv3d(1, 3, 1), torch.nn.Conv3d(1, 3, 1))
    without = {name: value.clone() for name, value in pair.state_dict().items()}
    assert "votes" not in without
    pair.votes = torch.tensor([[0.5, 1.0, 0.0], [0.5, 0.0, 1.0]])
    with_votes = {name: value.clone() for name, value in pair.state_dict().items()}
    pair.load_state_dict(without)
    assert pair.votes is None
    pair.load_state_dict(with_votes)
    assert pair.votes.tolist() == with_votes["votes"].tolist()
    averaged = AveragedPair(pair, 0.5)
    averaged.update(pair)  # the teacher is asked for A and for B alone
    assert "votes" not in averaged.state_dict()
