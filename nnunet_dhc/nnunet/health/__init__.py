# SPDX-License-Identifier: Apache-2.0
"""Whether a dataset is as it should be."""
