# SPDX-License-Identifier: Apache-2.0
"""Anatomy of the phantom: what one patient looks like, and the order in which organs are painted.

Places and sizes are in mm in the patient's frame (z to the head, y to the back, x to the left side), origin in the
middle of the field of view. Sizes relative to the liver follow BTCV.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nnunet_dhc.demo.shapes import Canvas, Distance, Point, ellipsoid, plate, tube, union, without

CLASSES = {
    "background": 0, "spleen": 1, "right_kidney": 2, "left_kidney": 3, "gallbladder": 4, "esophagus": 5, "liver": 6,
    "stomach": 7, "aorta": 8, "inferior_vena_cava": 9, "portal_and_splenic_vein": 10, "pancreas": 11,
    "right_adrenal_gland": 12, "left_adrenal_gland": 13,
}

# Chance that an organ is missing, as after surgery or out of sight.
ABSENT = {"gallbladder": 0.12, "left_kidney": 0.04, "spleen": 0.04, "right_adrenal_gland": 0.04,
          "left_adrenal_gland": 0.03}

# Mean and standard deviation over patients in HU. Neighbors overlap: that is the point.
_INTENSITIES = {
    "fat": (-100, 6), "muscle": (58, 6), "bone": (230, 30), "disc": (85, 10), "lung": (-840, 30),
    "liver": (104, 9), "spleen": (122, 9), "kidney": (172, 18), "medulla": (150, 20), "gallbladder": (12, 7),
    "wall": (72, 8), "pancreas": (88, 9), "adrenal": (80, 9), "node": (75, 11), "esophagus": (58, 8),
    "aorta": (195, 22), "cava": (136, 18), "portal": (158, 16), "heart": (130, 15),
}


@dataclass(frozen=True)
class Patient:
    """What is drawn once per patient; organs add their own variation when they are painted."""

    hu: dict[str, float]
    absent: frozenset[str]
    fat_threshold: float
    wall_fat_mm: float
    noise: float
    filling: str
    girth: np.ndarray = field(default_factory=lambda: np.ones(3))


def draw_patient(rng: np.random.Generator, absent_organs: bool = True) -> Patient:
    """Draw the patient's intensities, fat, noise, what fills the bowel, and which organs are absent."""
    hu = {name: float(rng.normal(mean, spread)) for name, (mean, spread) in _INTENSITIES.items()}
    missing = frozenset(name for name, chance in ABSENT.items() if rng.random() < chance and absent_organs)
    return Patient(hu=hu, absent=missing, fat_threshold=float(rng.uniform(0.2, 1.2)),
                   wall_fat_mm=float(rng.uniform(2, 6)), noise=float(rng.uniform(7, 14)),
                   filling=str(rng.choice(["water", "food", "contrast"], p=[0.45, 0.35, 0.2])),
                   girth=rng.normal(1, 0.04, 3).clip(0.93, 1.07))


class _Painter:
    """Paints organs with their own variation; one random generator, one order, so a seed gives one case."""

    def __init__(self, canvas: Canvas, patient: Patient, rng: np.random.Generator,
                 textures: dict[str, np.ndarray]) -> None:
        self.canvas, self.patient, self.rng, self.textures = canvas, patient, rng, textures

    def jitter(self, points: list[Point], spread_mm: float, together_mm: float = 0.0) -> list[np.ndarray]:
        """Move the points of a path, each by itself and all together."""
        common = self.rng.normal(0, together_mm, 3)
        return [np.asarray(p, float) + common + self.rng.normal(0, spread_mm, 3) for p in points]

    def scale(self, values: Point, spread: float) -> np.ndarray:
        """Change sizes, all by one factor and each by another."""
        common = np.exp(self.rng.normal(0, spread))
        return np.asarray(values, float) * common * np.exp(self.rng.normal(0, spread / 2, len(values)))

    def filled(self, hu: float, mottle: float, grain: float = 2.0) -> np.ndarray:
        """Intensity of a tissue: its level, coarse mottling and fine grain (HU)."""
        return hu + mottle * self.textures["mottle"] + grain * self.textures["grain"]

    def organ(self, name: str, shape: Distance, corners: list[Point], reach_mm: float, hu: float,
              mottle: float = 5.0, bump_mm: float = 1.0) -> None:
        """Paint a labeled organ, unless the patient lacks it."""
        shift = int(self.rng.integers(0, 64))
        if name not in self.patient.absent:
            self.canvas.paint(shape, self.filled(hu, mottle), self.canvas.box(corners, reach_mm + 3),
                              CLASSES[name], bump_mm, shift)

    def other(self, shape: Distance, corners: list[Point], reach_mm: float, intensity: float | np.ndarray,
              bump_mm: float = 0.0, label: int | None = 0, only_in: int | None = None) -> None:
        """Paint something without a label of its own (``label=None``: inside an organ, which it belongs to)."""
        self.canvas.paint(shape, intensity, self.canvas.box(corners, reach_mm + 3), label, bump_mm,
                          int(self.rng.integers(0, 64)), only_in)

    def blob(self, center: Point, radii: Point, spread_mm: float, scale: float, tilt_deg: float
             ) -> tuple[Distance, list[Point], float]:
        """An ellipsoid somewhat elsewhere, of somewhat another size, and the box it lies in."""
        (middle,) = self.jitter([center], spread_mm)
        size = self.scale(radii, scale)
        return ellipsoid(middle, size, self.rng.normal(0, tilt_deg, 3)), [middle], float(max(size))


def paint_patient(canvas: Canvas, patient: Patient, rng: np.random.Generator,
                  textures: dict[str, np.ndarray]) -> None:
    """Paint a whole patient, from the body wall inwards to the smallest glands."""
    painter = _Painter(canvas, patient, rng, textures)
    for part in (_body, _spine_and_muscles, _lungs_and_heart, _bowel, _liver, _spleen_and_kidneys, _stomach,
                 _gallbladder, _great_vessels, _pancreas_and_veins, _lymph_nodes, _adrenal_glands, _esophagus):
        part(painter)


def _skin_radii(p: _Painter) -> np.ndarray:
    return np.array([400, 55, 67]) * p.patient.girth


def _inner_wall(p: _Painter) -> Distance:
    return ellipsoid((0, 0, 0), _skin_radii(p) - p.patient.wall_fat_mm - 3.5)


def _body(p: _Painter) -> None:
    hu = p.patient.hu
    box = (slice(None),) * 3
    skin, fat = _skin_radii(p), p.patient.wall_fat_mm
    p.canvas.paint(ellipsoid((0, 2, 0), skin), p.filled(hu["fat"], 4), box, 0, 0.8)
    p.canvas.paint(ellipsoid((0, 2, 0), skin - fat), p.filled(hu["muscle"], 5), box, 0, 0.6)
    # Inside the wall: fat with strands of soft tissue.
    inner = hu["fat"] + p.textures["stranded"] * (hu["wall"] - 20 - hu["fat"]) * 0.7
    p.canvas.paint(_inner_wall(p), inner + 3 * p.textures["grain"], box, 0, 0.6)
    # Ribs: arcs in the wall of the upper half.
    z, y, x = p.canvas.points
    wall = ellipsoid((0, 2, 0), skin - fat - 2)(p.canvas.points)
    phase = p.rng.uniform(0, 22)
    rib = np.maximum(np.abs(wall) - 1.8, np.abs((z + 0.5 * np.abs(y) + phase) % 22 - 11) - 3.0)
    rib = np.maximum(rib, -(z - 8 - 0.3 * np.abs(x)))
    p.canvas.paint(lambda _: rib, hu["bone"], box, 0)


def _spine_and_muscles(p: _Painter) -> None:
    hu = p.patient.hu
    column = tube(p.jitter([(-130, 33, 0), (0, 30, 0), (130, 33, 0)], 1.0), (11, 11, 11), (1, 1.1, 1))
    box = p.canvas.box([(-130, 30, -14), (130, 48, 14)], 8)
    z = p.canvas.points[0]
    vertebra = 1 / (1 + np.exp((np.abs((z + p.rng.uniform(0, 24)) % 24 - 12) - 9) / 0.6))
    bone = hu["disc"] + vertebra * (hu["bone"] - hu["disc"]) + 8 * p.textures["mottle"] * vertebra
    for side in (-1, 1):
        path = p.jitter([(20, 34, 12 * side), (-20, 33, 17 * side), (-120, 24, 22 * side)], 1.0)
        psoas = tube(path, (2, 8.5, 11))
        p.other(psoas, path, 12, p.filled(hu["muscle"], 4))
        path = [(-130, 44, 15 * side), (130, 42, 14 * side)]
        p.other(tube(path, (9, 8)), path, 10, p.filled(hu["muscle"], 4), 0.5)
    p.canvas.paint(column, bone, box, 0, 0.4)
    p.canvas.paint(tube([(-130, 44, 0), (130, 44, 0)], (4.5, 4.5)), 35.0, box, 0)
    p.canvas.paint(tube([(-130, 50, 0), (130, 50, 0)], (2.5, 2.5)), hu["bone"], box, 0)
    p.canvas.wall = _inner_wall(p)(p.canvas.points)


def _lungs_and_heart(p: _Painter) -> None:
    hu = p.patient.hu
    z, y, x = p.canvas.points
    dome = 66 + p.rng.normal(0, 4)
    for side in (-1, 1):
        height = dome - (4 if side > 0 else 0) - ((x - 30 * side) ** 2 + 0.7 * (y - 4) ** 2) / 55
        cavity = ellipsoid((100, 4, 29 * side), (90, 40 * p.patient.girth[1], 27 * p.patient.girth[2]))
        lung = np.maximum(height - z, cavity(p.canvas.points))
        p.canvas.paint(lambda _, d=lung: d, p.filled(hu["lung"], 18, 8), (slice(None),) * 3, 0, 0.5)
    heart, corners, reach = p.blob((92, -14, 10), (24, 18, 24), 3, 0.08, 8)
    p.other(heart, corners, reach, p.filled(hu["heart"], 5), 1.0)


def _content(p: _Painter) -> np.ndarray:
    """What fills stomach or bowel: water, food or swallowed contrast, and gas where it collects in front."""
    level = {"water": 12.0, "food": 45.0, "contrast": 190.0}[p.patient.filling]
    return p.filled(level + p.rng.normal(0, 8), 22 if p.patient.filling == "food" else 4, 3)


def _bowel(p: _Painter) -> None:
    content = _content(p)
    for _ in range(int(p.rng.integers(7, 13))):
        start = np.array([p.rng.uniform(-95, 0), p.rng.uniform(-34, 4), p.rng.uniform(-40, 40)])
        path = [start]
        for _ in range(3):
            path.append(path[-1] + p.rng.normal(0, (10, 7, 13)))
        radius = p.rng.uniform(4.5, 8)
        _hollow(p, path, [radius] * 4, content, gas_chance=0.35)
    for side in (-1, 1):
        path = p.jitter([(-90, 12, 48 * side), (-40, 10, 50 * side), (0, 0, 46 * side), (4, -24, 30 * side)], 3)
        _hollow(p, path, p.scale([8, 7, 7, 7], 0.15), p.filled(p.rng.uniform(-80, 40), 60, 6), gas_chance=0.6)


def _hollow(p: _Painter, path: list[np.ndarray], radii: Point, content: np.ndarray, gas_chance: float,
            label: int = 0) -> None:
    """A hollow organ along a path: wall, content, and perhaps a bubble of gas in front."""
    radii = np.asarray(radii, float)
    reach = float(radii.max())
    p.other(tube(path, radii), path, reach, p.filled(p.patient.hu["wall"], 5), 0.6, label)
    p.other(tube(path, np.maximum(radii - 2.2, 0.8)), path, reach, content, 0.4, None)
    if p.rng.random() < gas_chance:
        front = np.array([0, -0.45 * reach, 0])
        bubble = [point + front for point in path]
        p.other(tube(bubble, np.maximum(radii * 0.5 - 0.5, 0.8)), bubble, reach, -900.0, 0.3, None, label)


def _liver(p: _Painter) -> None:
    hu = p.patient.hu
    right, corners_r, _ = p.blob((20, -2, -28), (45, 38, 32), 2.5, 0.07, 5)
    left, corners_l, _ = p.blob((34, -25, 4), (17, 13, 29), 3, 0.14, 8)
    hollow, _, _ = p.blob((-22, 4, 2), (40, 24, 22), 2, 0.05, 5)
    # The liver's underside is cut by the front of the right kidney and the space of the stomach.
    shape = without(union(right, left, blend_mm=8), hollow)
    p.organ("liver", shape, corners_r + corners_l, 56, hu["liver"], mottle=5, bump_mm=1.6)
    for _ in range(3):
        path = p.jitter([(48, 8, -12), (36, 0, -28), (16, -6, -40)], 6)
        p.other(tube(path, (3, 2.4, 1.2)), path, 4, p.filled(hu["liver"] + p.rng.uniform(15, 40), 3), 0, None, 6)
    for _ in range(int(p.rng.poisson(1.0))):
        lesion, corners, reach = p.blob((p.rng.uniform(-10, 50), p.rng.uniform(-24, 20), p.rng.uniform(-50, -8)),
                                        (5, 5, 5), 0, 0.35, 0)
        p.other(lesion, corners, reach, p.filled(float(p.rng.choice([8, 60, 75])), 4), 0.8, None, 6)


def _spleen_and_kidneys(p: _Painter) -> None:
    hu = p.patient.hu
    spleen, corners, reach = p.blob((30, 17, 41), (29, 22, 12.5), 3, 0.15, 9)
    dent, _, _ = p.blob((26, 6, 28), (22, 13, 8), 2, 0.1, 10)
    p.organ("spleen", without(spleen, dent), corners, reach, hu["spleen"], mottle=6, bump_mm=1.3)
    for side, name, z in ((-1, "right_kidney", -20), (1, "left_kidney", -11)):
        middle = p.jitter([(z, 23, 33 * side)], 3)[0]
        size = p.scale((27, 12, 13.5), 0.1)
        tilt = p.rng.normal((0, 0, 0), 7) + np.array([0, 12 * side, 0])
        hilum = middle + np.array([0, -3, -13 * side])
        bean = without(ellipsoid(middle, size, tilt), ellipsoid(hilum, (9, 5, 7)))
        p.organ(name, bean, [middle], float(size.max()), hu["kidney"], mottle=4, bump_mm=0.9)
        core = ellipsoid(middle - np.array([0, 0, 3 * side]), size * 0.6, tilt)
        p.other(core, [middle], float(size.max()), p.filled(hu["medulla"], 10), 1.2, None, CLASSES[name])
        if p.rng.random() < 0.35:
            cyst, corners, reach = p.blob(middle + p.rng.normal(0, (14, 6, 6)), (5, 5, 5), 0, 0.3, 0)
            p.other(cyst, corners, reach, p.filled(6, 2), 0, None, CLASSES[name])
        vessel = p.jitter([hilum, (hilum[0] + 3, 18, 4 * side)], 1)
        p.other(tube(vessel, (2.6, 2.2)), vessel, 4, p.filled(hu["cava"], 4))


def _stomach(p: _Painter) -> None:
    path = p.jitter([(52, 4, 27), (34, -8, 31), (12, -22, 22), (2, -25, 2), (6, -18, -10)], 2.5, 3)
    _hollow(p, path, p.scale((15, 15, 11, 8, 5), 0.14), _content(p), gas_chance=0.0, label=CLASSES["stomach"])


def _gallbladder(p: _Painter) -> None:
    neck = p.jitter([(0, -10, -20)], 2.5)[0]
    fundus = neck + p.rng.normal((-20, -14, -6), 3.5)
    radius = 7.6 * np.exp(p.rng.normal(0, 0.22))
    p.organ("gallbladder", tube([neck, fundus], (0.45 * radius, radius)), [neck, fundus], 14,
            p.patient.hu["gallbladder"], mottle=2, bump_mm=0.5)


def _great_vessels(p: _Painter) -> None:
    hu = p.patient.hu
    for side in (-1, 1):
        # The crura of the diaphragm: thin, as bright as adrenal glands, beside the aorta.
        center = p.jitter([(26, 20, 6 + 10 * side)], 1.5)[0]
        crus = plate(center, (22, 7, 1.7), p.rng.normal((0, 0, 18 * side), 5))
        p.other(crus, [center], 24, p.filled(hu["muscle"], 4), 0.4)
        path = p.jitter([(-64, 17, 2 + 3 * side), (-120, 8, 24 * side)], 1.5)
        p.other(tube(path, (4, 3.6)), path, 5, p.filled(hu["aorta"], 3))
    radius = 5.2 * np.exp(p.rng.normal(0, 0.1))
    aorta = p.jitter([(120, 20, 8), (40, 18, 6), (-15, 16, 4), (-64, 16, 3)], 1.2, 1)
    p.organ("aorta", tube(aorta, (radius * 1.1, radius, 0.95 * radius, 0.85 * radius)), aorta, 8, hu["aorta"], 3, 0.4)
    for z, y in ((22, -10), (12, -6)):
        branch = [np.array([z, 14, 5]), *p.jitter([(z - 3, 4, 3), (z - 22, y, 2)], 1.5)]
        p.other(tube(branch, (2.4, 2.2, 1.8)), branch, 4, p.filled(hu["aorta"], 3))
    flat = float(np.exp(p.rng.normal(0.12, 0.14)))
    cava = p.jitter([(64, 8, -12), (20, 14, -11), (-20, 17, -10), (-64, 18, -8)], 1.4, 1)
    vein = tube(cava, p.scale((6, 6, 5.6, 5.4), 0.09), (1, flat, 1))
    p.organ("inferior_vena_cava", vein, cava, 9, hu["cava"], 8, 0.5)


def _pancreas_and_veins(p: _Painter) -> None:
    hu = p.patient.hu
    shift = p.rng.normal(0, 2.5, 3)
    duodenum = [q + shift for q in p.jitter([(4, -14, -14), (-8, -4, -21), (-24, 0, -18), (-28, 4, 2)], 1.5)]
    _hollow(p, duodenum, p.scale((5.5, 5.5, 5.5, 5), 0.1), _content(p), gas_chance=0.3)
    gland = [q + shift for q in p.jitter([(-16, -2, -11), (-4, -4, -6), (4, -8, 5), (12, 2, 19), (20, 12, 32)], 1.5)]
    p.organ("pancreas", tube(gland, p.scale((8, 7, 5.2, 6, 4.6), 0.13)), gland, 10, hu["pancreas"], 8, 1.4)
    # Veins behind the pancreas. The trunk to the liver and the branch to the spleen are labeled, the one from below
    # (superior mesenteric vein) is not: only its place tells them apart.
    joint = np.array([-1, 3, -2]) + shift + p.rng.normal(0, 1, 3)
    below = [joint, *p.jitter([(-22, -4, 0), (-60, -10, 3)], 2)]
    p.other(tube(below, (3.4, 3.2, 2.4)), below, 5, p.filled(hu["portal"], 3))
    trunk = [joint, *p.jitter([(12, -2, -12), (22, -4, -22), (26, -5, -33)], 1.3)]
    splenic = [joint, *(q + shift for q in p.jitter([(8, 7, 10), (16, 14, 24), (24, 17, 33)], 1.5))]
    veins = union(tube(trunk, p.scale((4.2, 4, 3.6, 2.2), 0.08)), tube(splenic, p.scale((3.6, 3.1, 2.9, 2.3), 0.08)))
    p.organ("portal_and_splenic_vein", veins, trunk + splenic, 6, hu["portal"], 3, 0.3)


def _lymph_nodes(p: _Painter) -> None:
    for _ in range(int(p.rng.integers(5, 14))):
        center = np.array([p.rng.uniform(-60, 30), p.rng.uniform(-6, 24), p.rng.normal(0, 15)])
        node, corners, reach = p.blob(center, (3.6, 2.6, 2.6), 0, 0.3, 40)
        before = p.canvas.segmentation[p.canvas.box(corners, 1)]
        if before.size and not before.any():
            p.other(node, corners, reach, p.filled(p.patient.hu["node"], 3), 0.4)
    if p.rng.random() < 0.2:
        spot, corners, reach = p.blob((10, 20, 33), (4, 4, 4), 4, 0.2, 0)
        p.other(spot, corners, reach, p.filled(p.patient.hu["spleen"], 4), 0, 0, 0)


def _adrenal_glands(p: _Painter) -> None:
    hu = p.patient.hu["adrenal"]
    for side, name, middle, width in ((-1, "right_adrenal_gland", (12, 23, -17), 1.25),
                                      (1, "left_adrenal_gland", (14, 22, 20), 1.4)):
        apex = p.jitter([middle], 2.2)[0]
        thick = width * np.exp(p.rng.normal(0, 0.12))
        length = 7.0 * np.exp(p.rng.normal(0, 0.15))
        limbs = []
        # Two thin limbs that open to the back, like an inverted V or Y.
        for turn in (-28, 24):
            angles = np.array([p.rng.normal(turn, 7), p.rng.normal(8 * side, 7), p.rng.normal(0, 7)])
            center = apex + np.array([-0.3 * length, 4.5, 4.2 * np.sign(turn)])
            limbs.append(plate(center, (length, 5.2, thick), angles))
        p.organ(name, union(*limbs, blend_mm=1.0), [apex], 16, hu, mottle=3, bump_mm=0.3)


def _esophagus(p: _Painter) -> None:
    path = p.jitter([(120, 16, 3), (66, 14, 5), (52, 8, 12), (46, 2, 20)], 1.2, 1)
    radius = 4.1 * np.exp(p.rng.normal(0, 0.12))
    p.organ("esophagus", tube(path, (radius, radius, 0.95 * radius, 0.95 * radius), (1, 1.15, 1)), path, 6,
            p.patient.hu["esophagus"], 3, 0.4)
    if p.rng.random() < 0.4:
        p.other(tube(path[:2], (1.3, 1.3)), path[:2], 3, -400.0, 0, None, CLASSES["esophagus"])
