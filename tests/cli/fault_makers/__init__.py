# SPDX-License-Identifier: Apache-2.0
"""Functions that make one fault each in a copy of the tiny dataset, or in a command that runs on it."""
