# SPDX-License-Identifier: Apache-2.0
"""Which scan to annotate next."""
