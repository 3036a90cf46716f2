# SPDX-License-Identifier: Apache-2.0
"""``python -m nnunet_dhc``, which torchrun needs: the command ``nnunet_dhc``."""

import sys

from nnunet_dhc.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
