# SPDX-License-Identifier: Apache-2.0
"""Whether the installation and a dataset are as they should be."""
