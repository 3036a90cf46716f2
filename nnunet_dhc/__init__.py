# SPDX-License-Identifier: Apache-2.0
"""Semi-supervised, class-imbalance-aware training for nnU-Net v2 (DHC, Wang & Li, MICCAI 2023).

Nothing is imported here: this module is loaded inside ``import torch`` (see ``_autoload``).
"""

__version__ = "0.1.0"
