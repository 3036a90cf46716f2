# SPDX-License-Identifier: Apache-2.0
"""nnU-Net's trainer made to end well: one line that says why, no process left, a checkpoint to continue from."""

from __future__ import annotations

import multiprocessing
import shlex
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.installation import require_supported_nnunet
from nnunet_dhc.nnunet.reliability import torchrun
from nnunet_dhc.nnunet.reliability.changed_plans import changed_inputs_and_outputs, changed_plans
from nnunet_dhc.nnunet.reliability.child_watch import ChildWatch
from nnunet_dhc.nnunet.reliability.damaged_files import CaseFolder, read_without_mapping, without_mapping
from nnunet_dhc.nnunet.reliability.device_errors import require_device
from nnunet_dhc.nnunet.reliability.explained_errors import explained
from nnunet_dhc.nnunet.reliability.graceful_stop import (
    Stopped,
    StopSignals,
    end_at_once,
    end_processes,
    within_seconds,
)
from nnunet_dhc.nnunet.reliability.last_line import end_with_one_line, say_crashes, say_last
from nnunet_dhc.nnunet.reliability.loading_failure import (
    GuardedStream,
    explain_loading_failure,
    killed_while_validating,
)
from nnunet_dhc.nnunet.reliability.orphaned_workers import end_workers_with_this_process
from nnunet_dhc.nnunet.reliability.output_folder import claimed, remove_unfinished
from nnunet_dhc.nnunet.reliability.resume_command import resume_command
from nnunet_dhc.wording import name_some


class ReliableTrainer(nnUNetTrainer):
    """Base of the trainers of this package; adds no method that nnU-Net calls, only guards around some of them."""

    output_folder: str | None = None
    can_be_continued = False  # whether this training has loaded or written a checkpoint
    epochs_in_checkpoint = 0

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),
    ):
        end_with_one_line()
        require_supported_nnunet()
        require_device(device)
        try:
            super().__init__(plans, configuration, fold, dataset_json, device)
        except OSError as error:
            raise explained(error, self.output_folder, self._preprocess_command, self.resume_command) from error
        torchrun.place(self)

    def print_to_log_file(self, *args, also_print_to_console=True, add_timestamp=True):
        # names of files need not be valid text, which nnU-Net's log file takes alone
        texts = (str(arg).encode("utf-8", "backslashreplace").decode() for arg in args)
        super().print_to_log_file(*texts, also_print_to_console=also_print_to_console, add_timestamp=add_timestamp)

    def initialize(self):
        with torchrun.wrapped_by_device(self):
            super().initialize()

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        plans = self.plans_manager.plans
        try:
            super().load_checkpoint(filename_or_checkpoint)
        except RuntimeError as error:
            changed = changed_plans(self.my_init_kwargs["plans"], plans, self.configuration_name)
            if changed:
                raise UserError(
                    f"{filename_or_checkpoint} does not fit the plans {self.plans_manager.plans_name}, which have "
                    f"changed since this run started ({name_some(changed, 5)}): restore them, or train with them under "
                    "another plans identifier"
                ) from error
            changed = changed_inputs_and_outputs(self.my_init_kwargs["dataset_json"], self.dataset_json)
            if changed:
                raise UserError(
                    f"{filename_or_checkpoint} does not fit dataset.json, which has changed since this run started "
                    f"({name_some(changed, 5)}): restore it, or train anew (without --c)"
                ) from error
            raise
        except OSError as error:  # the preprocessed cases, by whose format nnU-Net chooses how to read them
            raise explained(error, self.output_folder, self._preprocess_command, self.resume_command) from error
        self.can_be_continued, self.epochs_in_checkpoint = True, self.current_epoch
        changed = changed_plans(self.my_init_kwargs["plans"], plans, self.configuration_name)
        if changed:
            self.print_to_log_file(
                f"WARNING: the plans have changed since this run started ({name_some(changed, 5)}); it goes on with "
                "the new ones"
            )

    def run_training(self):
        end_workers_with_this_process()
        with self._ending_well("training"), claimed(self.output_folder, self.local_rank):
            remove_unfinished(self.output_folder, self.local_rank)
            super().run_training()

    def remove_leftovers(self) -> None:
        """What a killed process of this training left in its folder: unfinished checkpoints and the lock file."""
        with claimed(self.output_folder, self.local_rank):
            remove_unfinished(self.output_folder, self.local_rank)

    def perform_actual_validation(self, save_probabilities: bool = False):
        def explain(number: int) -> str:
            return killed_while_validating(number, self.resume_command, is_kept=self._model_is_kept)

        with (
            self._ending_well("the final validation"),
            claimed(self.output_folder, self.local_rank),
            without_mapping(self),
            ChildWatch(explain) as watch,
            self._loading_explained(RuntimeError),
        ):
            try:
                super().perform_actual_validation(save_probabilities)
            except (Stopped, RuntimeError) as error:
                number = watch.killed_by(error)
                if number is not None:
                    raise UserError(explain(number)) from error
                raise

    def get_tr_and_val_datasets(self):
        datasets = super().get_tr_and_val_datasets()
        if get_allowed_n_proc_DA() == 0:
            for dataset in datasets:
                read_without_mapping(dataset)
        return datasets

    def get_dataloaders(self):
        with self._loading_explained(RuntimeError, OSError):
            labeled, validation = super().get_dataloaders()
        return self.guarded(labeled), self.guarded(validation)

    def guarded(self, stream: Any) -> GuardedStream:
        """The same stream of batches; an error in it says what to do."""
        return GuardedStream(stream, self._explain_loading)

    def on_train_end(self):
        super().on_train_end()
        for stream in self._streams():
            if hasattr(stream, "_finish"):
                stream._finish()

    # ---- endings ----

    @contextmanager
    def _ending_well(self, what: str) -> Iterator[None]:
        before = multiprocessing.active_children()
        say_crashes()

        def give_up(stopped: Stopped) -> None:
            end_at_once(stopped.exit_code, self._stopped_line(stopped, what))

        with StopSignals(give_up) as signals:
            try:
                yield
            except BaseException as error:
                signals.ignore()
                if isinstance(error, Stopped):
                    line, code = self._stopped_line(error, what), error.exit_code
                else:
                    known = explained(error, self.output_folder, self._preprocess_command, self.resume_command)
                    if known is not error:
                        known.__cause__ = error
                    error, line, code = known, str(known), 1
                self._write_to_log(error, line)
                with within_seconds(code, line):
                    end_processes(before, self._streams())
                if not isinstance(error, Stopped):
                    raise error
                if self.local_rank == 0:
                    say_last(line)
                raise SystemExit(code) from None

    @property
    def _model_is_kept(self) -> bool:
        """Whether the trained model lies in a file, in the final validation."""
        return not self.disable_checkpointing or self.epochs_in_checkpoint >= self.num_epochs

    def _stopped_line(self, stopped: Stopped, what: str) -> str:
        if what != "training" and self._model_is_kept:
            state = "the trained model is complete. Repeat the validation with"
        elif not self.can_be_continued:
            state = "there is no checkpoint yet. Start again with"
        else:
            state = f"the checkpoint holds every finished epoch ({self.epochs_in_checkpoint}). Continue with"
        return f"Stopped by {stopped.name} in {what}; {state}: {self.resume_command}"

    def _write_to_log(self, error: BaseException, line: str) -> None:
        """Keep the traceback that the last line leaves out."""
        if self.local_rank != 0:
            return
        try:
            with open(self.log_file, "a", encoding="utf-8", errors="backslashreplace") as file:
                if not isinstance(error, Stopped):
                    file.write("".join(traceback.format_exception(error)))
                file.write(f"{line}\n")
        except OSError:
            pass  # a full disk is what the line says already

    @contextmanager
    def _loading_explained(self, *kinds: type[Exception]) -> Iterator[None]:
        try:
            yield
        except kinds as error:
            known = error if isinstance(error, UserError) else self._explain_loading(error, ())
            if known is error:
                raise
            raise known from error

    def _explain_loading(self, error: Exception, workers: Sequence[Any]) -> Exception:
        return explain_loading_failure(
            error, workers, self._case_folders(), self._preprocess_command, self.resume_command
        )

    def _case_folders(self) -> list[CaseFolder]:
        data = getattr(self, "data", None)
        # without data this is the validation of a finished training, which reads those cases alone
        labeled = (*data.cases.labeled, *data.cases.validation) if data is not None else self.do_split()[1]
        folders = [CaseFolder(self.preprocessed_dataset_folder, list(dict.fromkeys(labeled)))]
        if data is not None and data.pool is not None:
            folders.append(CaseFolder(data.pool.folder, data.pool.identifiers, True, data.pool.with_nonzero_mask))
        return folders

    def _streams(self) -> list[Any]:
        """Every augmenter that exists by now, out of its wrappers."""
        streams, found = [self.dataloader_train, self.dataloader_val], []
        while streams:
            stream = streams.pop()
            inner = [getattr(stream, name, None) for name in ("labeled", "unlabeled", "stream")]
            streams += [item for item in inner if item is not None]
            if stream is not None and not any(item is not None for item in inner):
                found.append(stream)
        return found

    @property
    def resume_command(self) -> str:
        return resume_command(self.can_be_continued)

    @property
    def _preprocess_command(self) -> str:
        dataset, plans = shlex.quote(self.plans_manager.dataset_name), self.plans_manager.plans_name
        return f"nnUNetv2_preprocess -d {dataset} -plans_name {plans} -c {self.configuration_name}"
