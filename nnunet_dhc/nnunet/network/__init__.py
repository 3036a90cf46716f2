# SPDX-License-Identifier: Apache-2.0
"""The pair of networks as one module, and trained ones as they are found and predict."""
