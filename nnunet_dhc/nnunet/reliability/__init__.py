# SPDX-License-Identifier: Apache-2.0
"""How a training ends when something breaks: one line, nothing lost."""
