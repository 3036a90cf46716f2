# SPDX-License-Identifier: Apache-2.0
"""Draw folds and labeled cases: every class among the labeled cases where possible, nested over fractions.

Nothing here touches a file. A *unit* is what stays together: the scans of one patient, or a single case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nnunet_dhc.errors import UserError

# Nodes after which the search for a smaller cover gives up and takes the best one it has.
_SEARCH_LIMIT = 20_000

Unit = tuple[str, ...]


def make_units(identifiers: Sequence[str], groups: Mapping[str, str] | None = None) -> list[Unit]:
    """Group identifiers; a case that ``groups`` does not name is a unit of its own."""
    members: dict[tuple[bool, str], list[str]] = {}
    for identifier in sorted(identifiers):
        named = groups is not None and identifier in groups
        members.setdefault((named, groups[identifier] if named and groups else identifier), []).append(identifier)
    return sorted(tuple(cases) for cases in members.values())


def without(units: Sequence[Unit], taken: Sequence[Unit]) -> list[Unit]:
    """Units that are not taken, in their order."""
    gone = set(taken)
    return [unit for unit in units if unit not in gone]


def draw_folds(
    units: Sequence[Unit], num_folds: int, seed: int, classes_of: Mapping[str, frozenset[str]]
) -> list[list[Unit]]:
    """Divide units into validation sets, each class spread over them as evenly as possible.

    Rare classes are dealt first, each unit to the set that has fewest units with that class (iterative
    stratification, Sechidis et al., ECML PKDD 2011), among the sets with room left.

    Raises:
        UserError: Fewer units than folds.
    """
    if len(units) < num_folds:
        raise UserError(f"--folds {num_folds}: there are only {len(units)} cases (or groups of cases) to divide")
    rng = np.random.default_rng([seed, 0])
    shuffled = [units[i] for i in rng.permutation(len(units))]
    classes = {unit: _classes(unit, classes_of) for unit in shuffled}
    frequency = _frequency(shuffled, classes)
    # Rarest class first; within it, large groups first, so that the sets end with equal numbers of cases.
    shuffled.sort(key=lambda unit: (min((frequency[c] for c in classes[unit]), default=len(units)), -len(unit)))
    room = sum(map(len, units)) / num_folds
    folds: list[list[Unit]] = [[] for _ in range(num_folds)]
    sizes = [0] * num_folds
    for unit in shuffled:
        rarest = sorted(classes[unit], key=lambda c: (frequency[c], c))[:3]
        open_folds = [f for f in range(num_folds) if sizes[f] + len(unit) <= np.ceil(room)]
        if not open_folds:
            open_folds = [int(np.argmin(sizes))]
        chosen = min(open_folds, key=lambda f: ([sum(c in classes[u] for u in folds[f]) for c in rarest], sizes[f]))
        folds[chosen].append(unit)
        sizes[chosen] += len(unit)
    return folds


def labeled_order(units: Sequence[Unit], seed: int, fold: int, classes_of: Mapping[str, frozenset[str]]) -> list[Unit]:
    """Order in which units become labeled: a smallest set with all classes first, then at random.

    The order does not depend on how many are asked for, so the 10 % cases are among the 20 % cases.
    """
    rng = np.random.default_rng([seed, 1, fold])
    shuffled = [units[i] for i in rng.permutation(len(units))]
    cover = smallest_cover(shuffled, classes_of)
    return cover + without(shuffled, cover)


def smallest_cover(units: Sequence[Unit], classes_of: Mapping[str, frozenset[str]]) -> list[Unit]:
    """Fewest units that together have every class that occurs, as far as a search of limited length finds them.

    Within the cover, each unit adds the most classes still missing, so that a shorter prefix is as good as it can be.

    Args:
        units: In the order of the search. The same order gives the same cover, but of several that are equally small
            not always the one that comes first in it.
        classes_of: The classes of each case.

    Returns:
        The units of the cover.
    """
    classes = {unit: _classes(unit, classes_of) for unit in units}
    best = _greedy(units, classes)
    frequency = _frequency(units, classes)
    bits = {name: 1 << rank for rank, name in enumerate(sorted(frequency, key=lambda name: (frequency[name], name)))}
    sets = [sum(bits[name] for name in classes[unit]) for unit in units]
    nodes = 0

    def search(chosen: list[Unit], missing: int) -> None:
        nonlocal best, nodes
        nodes += 1
        if not missing:
            best = chosen
            return
        if nodes > _SEARCH_LIMIT:
            return
        widest = max((of_unit & missing).bit_count() for of_unit in sets)
        if len(chosen) + -(-missing.bit_count() // widest) >= len(best):
            return
        rarest = missing & -missing
        for unit, of_unit in zip(units, sets, strict=True):
            if of_unit & rarest:
                search([*chosen, unit], missing & ~of_unit)

    search([], sum(bits.values()))
    return _greedy(best, classes)


def take_labeled(
    order: Sequence[Unit], wanted: float | int, total: int, option: str = "--labeled",
    among: str = "training cases of the fold",
) -> list[Unit]:
    """The first units of ``order`` whose number of cases comes closest to what is wanted (at least one unit).

    Args:
        wanted: A count (int), or a fraction of ``total`` (float in (0, 1]).
        option: Where the user said what is wanted, and ``among`` which cases; for messages.

    Raises:
        UserError: More cases than there are, or none.
    """
    if isinstance(wanted, float) and not 0 < wanted <= 1:
        raise UserError(f"{option} {wanted}: a fraction is above 0 and at most 1.0; a count has no decimal point")
    count = wanted if isinstance(wanted, int) else max(1, int(wanted * total + 0.5))
    if not 0 < count <= total:
        raise UserError(f"{option} {wanted}: choose between 1 and the {total} {among}, or a fraction such as 0.2")
    sums = np.cumsum([len(unit) for unit in order])
    return list(order[: int(np.argmin(np.abs(sums - count))) + 1])


def missing_classes(
    cases: Sequence[str], classes_of: Mapping[str, frozenset[str]], all_classes: Sequence[str]
) -> list[str]:
    """Classes that none of the cases has."""
    present = frozenset().union(*(classes_of.get(case, frozenset()) for case in cases))
    return [name for name in all_classes if name not in present]


def _greedy(units: Sequence[Unit], classes: Mapping[Unit, frozenset[str]]) -> list[Unit]:
    missing = frozenset().union(*(classes[unit] for unit in units)) if units else frozenset()
    chosen: list[Unit] = []
    while missing:
        widest = max(units, key=lambda unit: len(classes[unit] & missing))
        chosen.append(widest)
        missing -= classes[widest]
    return chosen


def _classes(unit: Unit, classes_of: Mapping[str, frozenset[str]]) -> frozenset[str]:
    return frozenset().union(*(classes_of.get(case, frozenset()) for case in unit))


def _frequency(units: Sequence[Unit], classes: Mapping[Unit, frozenset[str]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for unit in units:
        for name in classes[unit]:
            counts[name] = counts.get(name, 0) + 1
    return counts
