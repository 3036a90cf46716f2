# SPDX-License-Identifier: Apache-2.0
"""Published case lists for the key "unlabeled", matched to a dataset by the number at the end of each identifier."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from nnunet_dhc.errors import UserError
from nnunet_dhc.wording import name_some


@dataclass(frozen=True)
class Protocol:
    """Case numbers of one published split."""

    name: str
    source: str
    labeled: tuple[str, ...]
    unlabeled: tuple[str, ...]
    validation: tuple[str, ...]


def _numbers(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "btcv20",
            "BTCV/Synapse with 20 % labels: 4 labeled and 16 unlabeled cases, 4 for validation; the labeled cases are "
            "those of A&D (NeurIPS 2023), its test cases 0008 0027 0029 0033 0037 0039 are in no list",
            _numbers("0009 0021 0025 0034"),
            _numbers("0002 0003 0004 0005 0006 0010 0022 0024 0026 0028 0031 0032 0035 0036 0038 0040"),
            _numbers("0001 0007 0023 0030"),
        ),
        Protocol(
            "amos5",
            "AMOS with 5 % labels, lists of the code released with DHC (github.com/xmed-lab/DHC, amos_data/splits, "
            "MIT licence): 10 labeled and 206 unlabeled cases, 24 for validation; numbers above 500 are MRI",
            _numbers("0078 0158 0170 0192 0391 0396 0410 0514 0548 0578"),
            _numbers(
                """
        0001 0004 0005 0006 0007 0009 0010 0011 0014 0015 0016 0017 0019 0021 0023 0024 0025 0030 0033 0035
        0036 0038 0042 0043 0044 0045 0047 0048 0049 0050 0052 0054 0057 0058 0059 0060 0064 0067 0069 0071
        0072 0075 0076 0077 0079 0081 0083 0084 0086 0088 0089 0092 0094 0098 0099 0102 0103 0104 0105 0110
        0111 0113 0115 0118 0119 0121 0125 0126 0127 0129 0131 0133 0134 0135 0137 0138 0141 0142 0143 0147
        0149 0152 0156 0160 0161 0162 0166 0171 0172 0173 0175 0177 0179 0180 0181 0184 0185 0186 0188 0190
        0193 0195 0196 0198 0199 0212 0217 0224 0225 0226 0230 0231 0235 0237 0239 0242 0245 0248 0249 0254
        0259 0263 0264 0268 0272 0273 0274 0276 0279 0281 0282 0288 0294 0296 0299 0301 0302 0307 0317 0320
        0321 0330 0332 0341 0348 0350 0351 0358 0361 0362 0366 0367 0370 0371 0374 0376 0378 0379 0380 0383
        0384 0387 0388 0390 0392 0395 0398 0400 0401 0402 0403 0404 0405 0406 0408 0507 0508 0510 0517 0518
        0522 0530 0532 0541 0551 0555 0557 0558 0570 0571 0580 0582 0583 0584 0586 0587 0588 0589 0590 0591
        0593 0594 0595 0596 0597 0600
        """
            ),
            _numbers(
                """
        0027 0066 0097 0109 0116 0124 0153 0154 0159 0197 0214 0215 0297 0336 0337 0349 0353 0381 0538 0540
        0554 0585 0592 0599
        """
            ),
        ),
    )
}


def protocol_fold(name: str, identifiers: Sequence[str]) -> dict[str, list[str]]:
    """One fold of ``splits_final.json`` with the published lists.

    ``btcv_0009``, ``img0009`` and ``0009`` all match the published number 0009; ``case_9`` does not.

    Raises:
        UserError: Unknown protocol, or a published case that the dataset lacks or has twice.
    """
    if name not in PROTOCOLS:
        raise UserError(f"--protocol {name} is unknown; there are {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    by_number: dict[str, list[str]] = {}
    for identifier in identifiers:
        match = re.search(r"\d{4,}$", identifier)
        if match:
            by_number.setdefault(match[0], []).append(identifier)
    fold: dict[str, list[str]] = {}
    missing = []
    for key, numbers in (("train", protocol.labeled), ("val", protocol.validation), ("unlabeled", protocol.unlabeled)):
        fold[key] = []
        for number in numbers:
            found = by_number.get(number, [])
            if len(found) > 1:
                raise UserError(f"--protocol {name}: case {number} could be any of {name_some(found)}")
            fold[key] += found
            if not found:
                missing.append(number)
    if missing:
        total = len(protocol.labeled) + len(protocol.unlabeled) + len(protocol.validation)
        raise UserError(
            f"--protocol {name}: {len(missing)} of its {total} cases are not in the dataset ({name_some(missing)}); "
            "identifiers must end in the published number, like case_0009"
        )
    return fold
