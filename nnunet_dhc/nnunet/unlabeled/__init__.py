# SPDX-License-Identifier: Apache-2.0
"""Unlabeled scans: found, checked, preprocessed, kept, and drawn as patches."""
