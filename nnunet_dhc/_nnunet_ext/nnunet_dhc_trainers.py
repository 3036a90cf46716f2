# SPDX-License-Identifier: Apache-2.0
"""The single module that nnU-Net's trainer search sees; it resolves trainer names on demand.

nnU-Net asks ``hasattr(module, trainer_name)`` of every module in the folders of ``nnUNet_extTrainer`` and removes
this module from ``sys.modules`` afterwards. The trainers live in ``nnunet_dhc.trainers``, so their identity survives.
"""

from nnunet_dhc.trainers.lookup import is_trainer_name, trainer_class


def __getattr__(name: str):
    if is_trainer_name(name):
        return trainer_class(name)
    raise AttributeError(name)
