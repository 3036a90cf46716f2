# SPDX-License-Identifier: Apache-2.0
"""Which cases are labeled, unlabeled and for validation, and what the labels contain."""
