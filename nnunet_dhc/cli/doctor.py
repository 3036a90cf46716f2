# SPDX-License-Identifier: Apache-2.0
"""``nnunet_dhc doctor``: is everything found, and what is missing."""

from __future__ import annotations

import argparse

HELP = "check versions, device, paths, trainer lookup and disk; with -d also a dataset"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", metavar="DATASET", help="also check this dataset (id or name)")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the findings; exit code 1 where something is broken."""
    import json
    from dataclasses import asdict

    from nnunet_dhc.nnunet.health.dataset_health import check_dataset
    from nnunet_dhc.nnunet.host.installation import check_installation

    findings = check_installation() + (check_dataset(args.d) if args.d else [])
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        print("\n".join(map(str, findings)))
        broken = sum(finding.status == "broken" for finding in findings)
        print(f"\n{broken} broken" if broken else "\nEverything needed is there.")
    return int(any(finding.status == "broken" for finding in findings))
