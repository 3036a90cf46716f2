# SPDX-License-Identifier: Apache-2.0
"""What a training is made of: recipe, data, step, statistics, files."""
