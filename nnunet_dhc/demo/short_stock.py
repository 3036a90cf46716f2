# SPDX-License-Identifier: Apache-2.0
"""Stock nnU-Net with a shorter schedule: ``python -m nnunet_dhc.demo.short_stock 901 3d_fullres 0 --epochs 10``.

The trainer is nnU-Net's own class; only its counters (epochs, iterations per epoch), how often it writes a checkpoint
(each epoch, by a rename) and, if asked for, the part of patches around foreground are set before it starts, because
nnU-Net has no option for them. The learning rate follows the shorter schedule by itself.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.reliability.output_folder import claimed, remove_unfinished


def main(argv: list[str] | None = None) -> None:
    """Train and validate; continues where a checkpoint is."""
    parser = argparse.ArgumentParser(prog="python -m nnunet_dhc.demo.short_stock", description=__doc__.split("\n")[0])
    parser.add_argument("dataset", help="dataset name or id")
    parser.add_argument("configuration")
    parser.add_argument("fold")
    parser.add_argument("-tr", default="nnUNetTrainer")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS")
    parser.add_argument("-device", default="cuda", choices=["cpu", "cuda", "mps"])
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--iterations", type=int, default=250, help="iterations per epoch")
    parser.add_argument("--val-iterations", type=int, default=50, help="validation iterations per epoch")
    parser.add_argument("--oversample-foreground", type=float, metavar="PART", help="default: nnU-Net's 0.33")
    args = parser.parse_args(argv)

    import torch
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    torch.set_num_threads(multiprocessing.cpu_count() if args.device == "cpu" else 1)
    if torch.cuda.is_available():  # as nnUNetv2_train does, or stock would be slower here than there
        torch.backends.cudnn.deterministic = False
        torch.backends.cudnn.benchmark = True
    fold = args.fold if args.fold == "all" else int(args.fold)
    trainer = get_trainer_from_args(args.dataset, args.configuration, fold, args.tr, args.p, False,
                                    torch.device(args.device))
    trainer.num_epochs = args.epochs
    trainer.num_iterations_per_epoch = args.iterations
    trainer.num_val_iterations_per_epoch = args.val_iterations
    trainer.save_every = 1  # a run that is stopped often would never come further than nnU-Net's next 50 epochs
    trainer.save_checkpoint = _by_a_rename(trainer.save_checkpoint)
    if args.oversample_foreground is not None:
        trainer.oversample_foreground_percent = args.oversample_foreground
        trainer.probabilistic_oversampling = True  # as ours do; nnU-Net rounds to whole patches of a batch otherwise
    with claimed(trainer.output_folder):
        remove_unfinished(trainer.output_folder)
        continues = any(Path(trainer.output_folder).glob("checkpoint_*.pth"))
        maybe_load_checkpoint(trainer, continues, False)
        finished = Path(trainer.output_folder, "checkpoint_final.pth").is_file()
        if finished and trainer.current_epoch != args.epochs:
            parser.error(f"{trainer.output_folder} holds a finished training of {trainer.current_epoch} epochs, not "
                         f"{args.epochs}: remove it, or point nnUNet_results at another folder")
        trainer.run_training()
        trainer.perform_actual_validation(False)


def _by_a_rename(save: Callable[[str], None]) -> Callable[[str], None]:
    """nnU-Net's ``save_checkpoint`` without its half-written file when the process is killed."""

    def save_whole(filename: str) -> None:
        save(f"{filename}.tmp")
        if os.path.isfile(f"{filename}.tmp"):
            os.replace(f"{filename}.tmp", filename)

    return save_whole


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
