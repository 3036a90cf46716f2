# SPDX-License-Identifier: Apache-2.0
"""nnU-Net as it is installed and lies on disk: versions, folders, plans, raw images; and how files are written."""
