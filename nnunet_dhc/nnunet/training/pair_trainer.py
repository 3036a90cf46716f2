# SPDX-License-Identifier: Apache-2.0
"""The trainer of a co-trained pair: nnU-Net's, with a second stream of data, a second network and another objective."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_dhc.core.collapse import CollapseMonitor
from nnunet_dhc.core.pasting import box_masks
from nnunet_dhc.core.votes import votes_of
from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.network.averaged_pair import AveragedPair
from nnunet_dhc.nnunet.network.cotrained_pair import (
    CoTrainedPair,
    allow_graphs_of_all_outputs,
    initialize_sub_networks,
    store_channels_last,
    unwrapped,
)
from nnunet_dhc.nnunet.reliability import torchrun
from nnunet_dhc.nnunet.reliability.reliable_trainer import ReliableTrainer
from nnunet_dhc.nnunet.splits.fold_cases import ensure_splits_file, read_fold_cases
from nnunet_dhc.nnunet.splits.preprocessed_cases import dataset_class_of
from nnunet_dhc.nnunet.training import seeding
from nnunet_dhc.nnunet.training.architecture_b import configuration_of_b
from nnunet_dhc.nnunet.training.checkpoint import save_extended, set_aside, share_content
from nnunet_dhc.nnunet.training.epoch_statistics import TrainingStatistics, ValidationStatistics
from nnunet_dhc.nnunet.training.host_memory import keep_freed_memory
from nnunet_dhc.nnunet.training.mirroring import mirror_axes_of, mirroring_note
from nnunet_dhc.nnunet.training.objective import build_objective, class_names
from nnunet_dhc.nnunet.training.optimizer_step import Ending, OptimizerStep
from nnunet_dhc.nnunet.training.pair_state import PairState
from nnunet_dhc.nnunet.training.paired_loader import PairedLoader
from nnunet_dhc.nnunet.training.preparation import TrainingData, prepare_training_data, refuse_trained_validation_cases
from nnunet_dhc.nnunet.training.recipe import Recipe, changed_since, recipe_from_plans
from nnunet_dhc.nnunet.training.run_files import RunFiles
from nnunet_dhc.nnunet.training.step_mode import StepMode
from nnunet_dhc.nnunet.training.step_timer import StepTimer
from nnunet_dhc.nnunet.training.unlabeled_schedule import draws_unlabeled, lambda_and_rate
from nnunet_dhc.nnunet.training.unlabeled_stream import unlabeled_stream
from nnunet_dhc.nnunet.training.whole_step import StepInputs, as_list, mixed_precision
from nnunet_dhc.nnunet.unlabeled.unlabeled_loader import HiddenLabelsDataset, UnlabeledDataset


class PairTrainer(ReliableTrainer):
    """Base of every pair: a subclass sets ``recipe`` and, for controls, whose patches have no labels.

    Attributes:
        uses_unlabeled: Unlabeled cases are read, and must be there.
        hides_labels: Patches of the labeled cases, without their labels, take the place of unlabeled ones.
        epochs_of_name: Number of epochs, where the name of the trainer ends with it; it counts before the recipe's.
    """

    recipe = Recipe()
    uses_unlabeled = True
    hides_labels = False
    epochs_of_name: int | None = None

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),
    ):
        self._continues = bool(plans.get("continue_training"))  # nnU-Net's __init__ takes it out of the plans
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.recipe = recipe_from_plans(type(self).recipe, self.plans_manager.plans)
        self.settings_of_labels = self.recipe.left_to_labels
        if not (self.has_unsupervised_patches or self.recipe.has_supervised_term):
            raise UserError(
                "settings supervised_ce and supervised_dice of nnunet_dhc are both 0, and "
                f"{type(self).__name__} trains on labels alone: set one of them above 0, or use nnUNetTrainerDHC"
            )
        self._let_name_decide_epochs()
        self.num_epochs = self.epochs_of_name or self.recipe.num_epochs or self.num_epochs
        self.num_iterations_per_epoch = self.recipe.num_iterations_per_epoch or self.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = (
            self.recipe.num_val_iterations_per_epoch or self.num_val_iterations_per_epoch
        )
        self.save_every = sys.maxsize  # we write checkpoint_latest ourselves, after _best_ema of the epoch is known
        self.seed = seeding.requested_seed()
        self.data: TrainingData | None = None
        self.objective = self.monitor = self.step_mode = None  # -> initialize
        self.averaged_pair: AveragedPair | None = None
        self.files = RunFiles(self.output_folder)
        self.timer = StepTimer(self.device)
        self._state_of_checkpoint: PairState | None = None
        self._put_off: list[str] | None = None
        self.optimizer_step = OptimizerStep(self)

    def _let_name_decide_epochs(self) -> None:
        of_recipe = self.recipe.num_epochs
        if None not in (self.epochs_of_name, of_recipe) and of_recipe != self.epochs_of_name:
            self.print_to_log_file(
                f"num_epochs = {of_recipe}, a setting of {self.plans_manager.plans_name}, doesn't count: the name of "
                f"the trainer says {self.epochs_of_name}"
            )
            self.recipe = replace(self.recipe, num_epochs=self.epochs_of_name)

    @property
    def has_unsupervised_patches(self) -> bool:
        """Whether there are patches that pseudo labels alone supervise, of whichever cases."""
        return self.uses_unlabeled or self.hides_labels

    # ---- networks and objective ----

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        sub_networks = [
            nnUNetTrainer.build_network_architecture(
                plans_manager, configuration, num_input_channels, num_output_channels, enable_deep_supervision
            )
            for configuration in (configuration_manager, configuration_of_b(plans_manager, configuration_manager))
        ]
        return CoTrainedPair(*sub_networks)

    def initialize(self):
        if self.seed is not None:
            seeding.seed_everything(self.seed)
        if self._do_i_compile():
            allow_graphs_of_all_outputs()
        if self.is_ddp and not self.recipe.reads_all_outputs:
            raise UserError(
                "unsupervised_deep_supervision=false without a supervised term leaves outputs without gradients, which "
                "several GPUs can't train: set it to true (nnunet_dhc configure), or train on one GPU"
            )
        super().initialize()
        initialize_sub_networks(self.pair, self.recipe.initialization_a, self.recipe.initialization_b)
        if self.device.type == "cpu" and not self.is_ddp:  # DDP has laid its buckets out in the other order by now
            store_channels_last(self.pair)
        self.objective = build_objective(
            self.recipe, self.label_manager, self.loss, self.configuration_manager.batch_dice, self.is_ddp
        )
        if self.label_manager.has_regions and self.recipe.weighs_background:
            self.print_to_log_file(
                "WARNING: background_weight and background_exponent_final do nothing here: regions have no background"
            )
        self.class_names = class_names(self.label_manager, self.dataset_json)
        self.monitor = CollapseMonitor(
            self.class_names[1:],
            self.recipe.collapse_patience or max(3, round(0.05 * self.num_epochs)),
            self.has_unsupervised_patches,
        )
        self.step_mode = StepMode(self.recipe.low_memory, self)

    def _set_batch_size_and_oversample(self):
        super()._set_batch_size_and_oversample()
        if self.recipe.oversample_foreground is not None:
            self.oversample_foreground_percent = self.recipe.oversample_foreground
            # nnU-Net rounds the part to whole patches of a batch, or of a rank, otherwise: of two, 0.75 would be both
            self.probabilistic_oversampling = True

    @property
    def pair(self) -> CoTrainedPair:
        return unwrapped(self.network)

    def set_deep_supervision_enabled(self, enabled: bool):
        for network in self.pair.sub_networks:
            network.decoder.deep_supervision = enabled

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        rotation, do_dummy_2d, initial_patch_size, mirror_axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        dimensions = len(self.configuration_manager.patch_size)
        mirror_axes = mirror_axes_of(self.recipe.mirror_axes, mirror_axes, self.dataset_json["labels"], dimensions)
        self.inference_allowed_mirroring_axes = mirror_axes or None  # nnU-Net's predictor fails at an empty tuple
        return rotation, do_dummy_2d, initial_patch_size, mirror_axes

    # ---- data ----

    def do_split(self):
        if self.fold == "all":
            return super().do_split()
        if self.data is not None:  # the file may say something else by now, which nobody has checked or recorded
            return self._split_of_start()
        self._ensure_split()
        self._fold_cases()
        return super().do_split()

    def _split_of_start(self) -> tuple[list[str], list[str]]:
        labeled, validation = list(self.data.cases.labeled), list(self.data.cases.validation)
        self.print_to_log_file(f"Desired fold for training: {self.fold}")
        # in nnU-Net's words, from which reports read the counts
        self.print_to_log_file(f"This split has {len(labeled)} training and {len(validation)} validation cases.")
        if set(labeled) & set(validation):
            self.print_to_log_file("WARNING: Some validation cases are also in the training set.")
        return labeled, validation

    def _ensure_split(self) -> None:
        note = None
        if self.fold != "all":
            note = ensure_splits_file(self.preprocessed_dataset_folder_base, self._identifiers())
        if note:
            self.print_to_log_file(note)

    def _identifiers(self) -> list[str]:
        folder = self.preprocessed_dataset_folder
        remedy = f"run {self._preprocess_command}, then continue with: {self.resume_command}"
        return dataset_class_of(folder, remedy).get_identifiers(folder)

    def _fold_cases(self):
        return read_fold_cases(self.preprocessed_dataset_folder_base, self._identifiers(), self.fold)

    def get_dataloaders(self):
        with seeding.seeded_workers(self):
            labeled, validation = super().get_dataloaders()
            unlabeled, dataset = None, self._unlabeled_dataset()
            if dataset is not None:
                unlabeled = self.guarded(unlabeled_stream(self, dataset))
                next(unlabeled)  # starts the workers now, as nnU-Net does for its own
            return PairedLoader(labeled, unlabeled), validation

    def _unlabeled_dataset(self) -> UnlabeledDataset | HiddenLabelsDataset | None:
        if self.hides_labels:
            labeled = self.dataset_class(
                self.preprocessed_dataset_folder,
                list(self.data.cases.labeled),
                folder_with_segs_from_previous_stage=self.folder_with_segs_from_previous_stage,
            )
            return HiddenLabelsDataset(labeled, any(self.configuration_manager.use_mask_for_norm))
        pool = self.data.pool
        if pool is None:
            return None
        return UnlabeledDataset(
            pool.folder, pool.identifiers, self.data.previous_stage_folder, with_nonzero_mask=pool.with_nonzero_mask
        )

    # ---- start and end ----

    def on_train_start(self):
        if self._continues and self._state_of_checkpoint is None and not torchrun.is_restarted():
            raise UserError(
                f"--c: there is no checkpoint in {self.output_folder}; run the same command without --c to "
                "start this training"
            )
        with torchrun.rank_zero_first(self):
            self._ensure_split()
            cases = self._fold_cases()
        with torchrun.rank_zero_first(self):  # apart, so that no rank reads the split hours after another one
            self.data = prepare_training_data(self, cases, self.uses_unlabeled)
        super().on_train_start()
        self._start_weightings()
        self._start_averaging()
        starts_anew = self._state_of_checkpoint is None
        if starts_anew and self.files.has_epochs:
            self._set_aside("checkpoint_latest.pth", "dhc_log.jsonl", "dhc_run.json")
        self.files.start(self, self.data)
        if note := mirroring_note(self.recipe.mirror_axes, self.dataset_json["labels"]):
            self.print_to_log_file(note)
        for warning in self.data.warnings:
            self.print_to_log_file("WARNING:", warning)
        if starts_anew or os.path.isfile(self.files.path("checkpoint_final.pth")):
            # --c would continue from what is final; what is adjusted or validated would be taken for this training's
            self._save([self.files.path("checkpoint_latest.pth")], finished_epochs=self.current_epoch)
            self._set_aside("checkpoint_final.pth", "checkpoint_adjusted.pth", "validation")
        if starts_anew:
            self._set_aside("checkpoint_best.pth")
        self._state_of_checkpoint = None  # averaged weights are in it, too

    def _set_aside(self, *names: str) -> None:
        """Keep files of an earlier training in this folder, or of an earlier end of this one, under other names."""
        if self.local_rank != 0:
            return
        names = [name for name in names if not (self.disable_checkpointing and name.endswith(".pth"))]
        for name in set_aside(self.output_folder, names):
            self.print_to_log_file(f"{name} of an earlier training in this folder is now {name}.before")

    def _start_weightings(self) -> None:
        state = self._state_of_checkpoint
        decided_before = None if state is None else state.decided_by_labels
        self.recipe = self.recipe.for_labels(self.data.labeled_counts, decided_before)
        if state is not None:
            self._go_on_from(state)
            self._report_changes(state)
        counts = torch.from_numpy(np.asarray(self.data.labeled_counts)).to(self.device)
        for weighting in self.objective.weightings:
            if state is None:
                weighting.initialize(counts)
            weighting.to(self.device)

    def _go_on_from(self, state: PairState) -> None:
        try:
            state.restore_weightings(self.recipe, *self.objective.weightings)
            self.monitor.load_state_dict(state.monitor)
        except ValueError as error:
            raise UserError(
                f"class weights of the checkpoint in {self.output_folder} can't be taken over ({error}): restore the "
                f"settings in {self.plans_manager.plans_name} and the labels in dataset.json that it was made with, or "
                "train without --c under another plans identifier"
            ) from error

    def _start_averaging(self) -> None:
        """Here and not earlier, so that the average begins with pretrained weights where there are some."""
        if not (self.has_unsupervised_patches and self.recipe.teacher_momentum > 0):
            return
        self.averaged_pair = AveragedPair(self.pair, self.recipe.teacher_momentum)
        state = self._state_of_checkpoint
        if state is not None and state.averaged_pair is not None:
            self.averaged_pair.load_state_dict(state.averaged_pair)

    def _report_changes(self, state: PairState) -> None:
        changes = self.data.changes_since(state.data, self.files.record.cases)
        if changes:
            self._refuse_trained_validation_cases()
            self.data = replace(self.data, warnings=(*self.data.warnings, changes))
        plans_before = self.my_init_kwargs["plans"]  # nnU-Net has put the checkpoint's there
        settings = changed_since(self.recipe, state.recipe, plans_before, self.plans_manager.plans)
        if settings:
            self.print_to_log_file(
                f"WARNING: the recipe of {type(self).__name__} has changed since this run started, probably with the "
                f"version of nnunet_dhc ({'; '.join(settings)}). The run goes on with the new one"
            )

    def _refuse_trained_validation_cases(self) -> None:
        if self.fold != "all":  # there every case is a validation case, too
            cases = self._fold_cases() if self.data is None else self.data.cases
            refuse_trained_validation_cases(cases.validation, self.files.record, self.resume_command)

    def run_training(self):
        is_final = os.path.isfile(self.files.path("checkpoint_final.pth"))  # not where num_epochs was lowered since
        if self.current_epoch >= self.num_epochs and is_final:
            self.print_to_log_file(f"This training is finished ({self.num_epochs} epochs); nothing to continue.")
            self.remove_leftovers()
            return
        super().run_training()

    def perform_actual_validation(self, save_probabilities: bool = False):
        with self._ending_well("the final validation"):
            self._refuse_trained_validation_cases()  # --val, and --c of a finished training, check nothing before
        super().perform_actual_validation(save_probabilities)

    def on_train_end(self):
        super().on_train_end()
        self.files.end(self)

    # ---- epochs ----

    def on_epoch_start(self):
        if self.seed is not None:
            seeding.seed_everything(self.seed, self.current_epoch + 1, self.local_rank)
        super().on_epoch_start()

    def on_train_epoch_start(self):
        super().on_train_epoch_start()
        if self.device.type == "cpu" and self.recipe.low_memory != "on":
            keep_freed_memory()  # not before the loaders have started their workers, which would keep theirs
        self.loss_weight, self.unlabeled_rate = self.schedule(self.current_epoch)
        self.objective.weight_exponents = self.recipe.weight_exponents_at(self.current_epoch, self.num_epochs)
        self.objective.background_weight = self.recipe.background_weight
        self.statistics = TrainingStatistics(self.objective.labels.num_classes)
        self._shares_due = True
        self.timer.read()
        self.dataloader_train.waited_s = 0.0
        self._choose_streams(0)

    def on_train_epoch_end(self, train_outputs: list[dict]):
        if self.is_ddp:
            self.statistics.average_losses_across_ranks(self.device)
        self._choose_votes()
        # nnU-Net's curve, beside the one of validation: the total would rise with lambda and the rate of unlabeled
        # patches, and be NaN for the epoch of one skipped step.
        super().on_train_epoch_end([{"loss": self.statistics.supervised_loss}])

    def _choose_votes(self) -> None:
        """Let a sub-network abstain in validation and prediction from what it hasn't learned so far."""
        votes = votes_of(*self.statistics.training_dice, self.recipe.abstain_below, self.pair.votes)
        self.pair.votes = None if votes is None else votes.to(self.device)

    def schedule(self, epoch: int) -> tuple[float, float]:
        """Lambda of an epoch and the part of its steps that draw unlabeled patches."""
        if not self.has_unsupervised_patches:
            return 0.0, 0.0
        return lambda_and_rate(self.recipe, epoch, self.num_epochs, self.num_iterations_per_epoch)

    def _choose_streams(self, step: int) -> None:
        self.dataloader_train.draw_unlabeled = draws_unlabeled(step, self.unlabeled_rate)  # the same on all ranks

    def train_step(self, batch: dict) -> dict:
        self.timer.start()
        targets = [target.to(self.device, non_blocking=True) for target in as_list(batch["target"])]
        images = batch["data"].to(self.device, non_blocking=True)
        has_unlabeled = batch["unlabeled"] is not None
        unsupervised = self.has_unsupervised_patches and has_unlabeled
        paste_masks = None
        if has_unlabeled:
            unlabeled = batch["unlabeled"].to(self.device, non_blocking=True)
            if unsupervised and self.recipe.paste_side > 0:
                paste_masks = box_masks(len(unlabeled), unlabeled.shape[2:], self.recipe.paste_side, self.device)
            images = torch.cat((images, unlabeled))
        # The schedule draws unlabeled patches in a part of the steps; there they count so much more.
        loss_weight = self.loss_weight / self.unlabeled_rate if unsupervised else 0.0

        measures_shares = unsupervised and self._shares_due  # the same on all ranks: the measurement reduces over them
        inputs = StepInputs(images, targets, unsupervised, loss_weight, measures_shares, paste_masks=paste_masks)
        self.optimizer.zero_grad(set_to_none=True)
        outcome = self.step_mode.gradients(self, inputs)
        taken = self.optimizer_step.take(outcome)
        self.timer.mark("backward")

        if outcome.shares is not None:
            self.statistics.gradient_share, self.statistics.unlabeled_gradient_share = outcome.shares
            self._shares_due = taken.ending is Ending.SKIPPED
        self.statistics.add(
            taken.losses,
            taken.empty_cross_entropies,
            outcome.counts,
            outcome.labeled_overlaps,
            has_unlabeled=has_unlabeled,
            finite=taken.ending is not Ending.SKIPPED,
            overflow=taken.ending is Ending.OVERFLOWED,
        )
        self.optimizer_step.stop_if_nothing_changes(map(str, (*batch["keys"], *batch.get("unlabeled_keys", ()))))
        self._choose_streams(self.statistics.steps)
        self.files.estimate_duration(self, has_unlabeled)
        return {"loss": taken.losses[0]}

    # ---- validation ----

    def on_validation_epoch_start(self):
        super().on_validation_epoch_start()
        self.validation_statistics = ValidationStatistics(self.objective.labels)

    def validation_step(self, batch: dict) -> dict:
        images = batch["data"].to(self.device, non_blocking=True)
        targets = [target.to(self.device, non_blocking=True) for target in as_list(batch["target"])]
        with mixed_precision(self.device):
            with self.pair.giving("both"):
                logits_a, logits_b = self.network(images)
            of_pair = self.pair.combined(logits_a, logits_b)
        # before nnU-Net's step, which overwrites ignored voxels of the target in place
        self.validation_statistics.add(*(as_list(logits)[0] for logits in (logits_a, logits_b, of_pair)), targets[0])
        on_device = {**batch, "data": images, "target": targets if isinstance(batch["target"], list) else targets[0]}
        with self._network_gives(of_pair):
            return super().validation_step(on_device)

    @contextmanager
    def _network_gives(self, output):
        """Let nnU-Net's validation step score an output that is there already, instead of running the pair again."""
        network, self.network = self.network, lambda images: output
        try:
            yield
        finally:
            self.network = network

    def on_validation_epoch_end(self, val_outputs: list[dict]):
        super().on_validation_epoch_end(val_outputs)
        self.validation = self.validation_statistics.read(self.is_ddp)

    def on_epoch_end(self):
        epoch = self.current_epoch
        with self._checkpoints_put_off() as due:
            super().on_epoch_end()
        if self.local_rank == 0:
            self.files.log_epoch(self, epoch)
        if self.current_epoch < self.num_epochs:
            due.append(self.files.path("checkpoint_latest.pth"))  # last: a run killed in between does the epoch again
        self._save(due, finished_epochs=self.current_epoch)

    # ---- checkpoints ----

    @contextmanager
    def _checkpoints_put_off(self):
        """Collect the names of checkpoints instead of writing them.

        nnU-Net writes the best one before the alarms of the epoch are known, which belong to its state. Put off, it has
        the content of the latest one and needn't be written a second time.
        """
        self._put_off = []
        try:
            yield self._put_off
        finally:
            self._put_off = None

    def _save(self, filenames: list[str], finished_epochs: int) -> None:
        """Write one checkpoint under all these names."""
        if self.disable_checkpointing or not filenames:
            return
        current, self.current_epoch = self.current_epoch, finished_epochs - 1  # nnU-Net stores current_epoch + 1
        for filename in filenames:
            if filename == filenames[0] or not (self.local_rank == 0 and share_content(filenames[0], filename)):
                self.save_checkpoint(filename)
        self.current_epoch, self.epochs_in_checkpoint = current, finished_epochs

    def save_checkpoint(self, filename: str) -> None:
        if self._put_off is not None:
            self._put_off.append(filename)
            return
        if self.local_rank == 0:
            save_extended(super().save_checkpoint, filename, PairState.of(self).content())
        self.can_be_continued = self.can_be_continued or not self.disable_checkpointing

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        state = PairState.read(filename_or_checkpoint, type(self).__name__)
        super().load_checkpoint(filename_or_checkpoint)
        self._state_of_checkpoint = state
