# SPDX-License-Identifier: Apache-2.0
"""The pair of networks, and the way of one of them to and from stock nnU-Net."""
