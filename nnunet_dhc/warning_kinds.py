# SPDX-License-Identifier: Apache-2.0
"""First words of those warnings of a run that change what its scores mean; reports repeat them without case names."""

from __future__ import annotations

LEAK = "LEAK"
TRANSDUCTION = "Transduction"
SHARED_STATISTICS = "Shared statistics"
