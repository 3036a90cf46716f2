# SPDX-License-Identifier: Apache-2.0
"""What is done with a trained model: adjust it, export it, start from one."""
