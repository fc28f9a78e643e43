"""Painting of a vehicle: body, windows, lamps and accessories, from one side.

Coordinates are shares of the vehicle's length: v is 0 on the ground and negative above it, u is 0 in
the middle. From the side it faces right; the brush mirrors it.
"""

from data_catalog.synthetic.canvas import Brush
from data_catalog.synthetic.identities import Identity
from data_catalog.synthetic.patterns import paint_pattern
from data_catalog.synthetic.random_choices import RandomChoices

DARK = 0.6
"""Light on gaps and joints."""

CABINS = {
    "saloon": (-0.22, 0.10, -0.36),
    "hatchback": (-0.36, 0.10, -0.46),
    "estate": (-0.46, 0.10, -0.49),
    "off-roader": (-0.45, 0.12, -0.49),
    "van": (-0.49, 0.26, -0.49),
    "pickup": (-0.06, 0.12, -0.10),
}
"""Position of the cabin from the side: rear at the roof, front at the roof, rear at the belt line."""


def choose_view(draws: RandomChoices) -> str:
    """A random side of a vehicle: side, front or rear."""
    return draws.pick(("side", "side", "side", "front", "rear"))


class VehiclePainter:
    """Paints one vehicle from one side.

    Attributes:
        index: Index of every part's material on the canvas, by the part's name.
    """

    def __init__(self, brush: Brush, vehicle: Identity, view: str) -> None:
        self.brush, self.vehicle, self.view = brush, vehicle, view
        self.worn, self.build = vehicle.attributes, vehicle.build
        self.index = {part: brush.canvas.add(material) for part, material in vehicle.materials.items()}
        self.wheel = self.build["wheel"]
        self.roof = -self.build["height"]
        self.belt = self.roof * self.build["belt"] - self.wheel * 0.5
        self.floor = -self.wheel * 0.8
        # A vehicle is longer than wide; from the front or rear only its width is visible.
        self.half = 0.5 if view == "side" else 0.27

    def paint(self) -> None:
        """Paint from back to front."""
        if self.view == "side":
            rear, front, _ = CABINS[self.worn["type"]]
            self._accessory(rear, front)
            self._side()
        else:
            self._accessory(-self.half * 0.7, self.half * 0.7)
            self._end()
        self._patches()

    def _side(self) -> None:
        brush, paint, kind = self.brush, self.index["paint"], self.worn["type"]
        rear, front, rear_belt = CABINS[kind]
        nose = 0.5 - self.build["bonnet"] * (0.45 if kind == "van" else 1.0)
        if kind == "pickup":
            self._load()
        brush.block(paint, self.roof, self.belt + 0.01, (rear, front), (rear_belt, nose), light=1.05)
        brush.block(paint, self.belt, self.floor, (-0.49, 0.47), (-0.5, 0.5), light=1.0)
        bonnet = (nose, 0.47)
        brush.block(self.index["bonnet"], self.belt - 0.008, self.belt + 0.035, bonnet, (nose - 0.02, 0.49))
        brush.bar(self.index["trim"], self.floor - 0.025, self.floor, 0.0, 0.5)
        self._side_windows(rear, front, rear_belt, nose)
        body = brush.area(-0.5, 0.5, self.roof, self.floor - 0.025)
        middle = (self.belt + self.floor) / 2.0
        paint_pattern(brush, body, self.vehicle.pattern, (paint, self.index["paint_pattern"]), middle, 0.12)
        for door in (0.02, nose - 0.05):
            brush.dim(brush.area(door - 0.004, door + 0.004, self.belt, self.floor - 0.03), DARK)
        self._damage(0.5)
        self._side_lamps()
        for wheel in (-0.32, 0.32):
            brush.ellipse(
                self.index["trim"], wheel, -self.wheel, self.wheel * 1.2, self.wheel * 1.2, light=0.6
            )
            brush.ellipse(self.index["tyre"], wheel, -self.wheel, self.wheel, self.wheel, roundness=0.0)
            brush.ellipse(self.index["hub"], wheel, -self.wheel, self.wheel * 0.6, self.wheel * 0.6)

    def _side_windows(self, rear: float, front: float, rear_belt: float, nose: float) -> None:
        brush, top, bottom = self.brush, self.roof + 0.022, self.belt - 0.008
        left = (rear + 0.03, rear_belt + 0.045)
        right = (front - 0.015, nose - 0.03)
        if self.worn["type"] == "van":
            left = (0.06, 0.06)
        brush.block(self.index["glass"], top, bottom, (left[0], right[0]), (left[1], right[1]), roundness=0.1)
        for pillar in (0.02,) if self.worn["type"] in ("saloon", "hatchback") else (0.02, -0.26):
            brush.bar(self.index["paint"], top, bottom, pillar, 0.012, light=0.9)

    def _load(self) -> None:
        """Cargo on the bed of a pickup, visible above its side."""
        load = self.build["load"]
        cargo = self.index["cargo"]
        self.brush.block(cargo, self.belt - 0.03 - 0.08 * load, self.belt + 0.01, (-0.44, -0.3 + 0.12 * load))
        self.brush.ellipse(cargo, -0.2, self.belt, 0.07, 0.03 + 0.04 * load, light=0.8)

    def _side_lamps(self) -> None:
        brush, high = self.brush, self.belt + 0.055
        lamp, rear = self.index["lamp"], self.index["rear_lamp"]
        shape = self.worn["lamps"]
        if shape == "round":
            brush.ellipse(lamp, 0.46, high, 0.028, 0.028, roundness=0.0)
        elif shape == "square":
            brush.block(lamp, high - 0.028, high + 0.024, (0.43, 0.485))
        elif shape == "slim":
            brush.block(lamp, high - 0.022, high - 0.002, (0.40, 0.485))
        else:
            brush.ellipse(lamp, 0.465, high - 0.018, 0.016, 0.016, roundness=0.0)
            brush.ellipse(lamp, 0.465, high + 0.018, 0.016, 0.016, roundness=0.0)
        brush.block(rear, high - 0.035, high + 0.03, (-0.495, -0.465))

    def _end(self) -> None:
        """Front or rear."""
        brush, half, paint = self.brush, self.half, self.index["paint"]
        is_front = self.view == "front"
        for side in (-1.0, 1.0):
            brush.block(self.index["tyre"], -self.wheel * 1.6, 0.0, (side * 0.2 - 0.045, side * 0.2 + 0.045))
        high = half * (0.95 if self.worn["type"] == "van" else 0.72)
        if self.worn["type"] == "pickup" and not is_front:
            self.brush.ellipse(
                self.index["cargo"], 0.0, self.belt, half * 0.7, 0.04 + 0.08 * self.build["load"]
            )
        brush.block(
            paint, self.roof, self.belt + 0.01, (-high, high), (-half * 0.97, half * 0.97), roundness=0.15
        )
        top, bottom = self.roof + 0.025, self.belt - 0.005
        upper, lower = high * 0.9, half * 0.85
        brush.block(self.index["glass"], top, bottom, (-upper, upper), (-lower, lower), roundness=0.1)
        brush.block(paint, self.belt, self.floor, (-half, half), (-half * 0.96, half * 0.96), roundness=0.12)
        body = brush.area(-half, half, self.belt, self.floor)
        middle = (self.belt + self.floor) / 2.0
        paint_pattern(brush, body, self.vehicle.pattern, (paint, self.index["paint_pattern"]), middle, 0.12)
        if is_front:
            brush.bar(self.index["bonnet"], self.belt, self.belt + 0.04, 0.0, half * 0.9, roundness=0.1)
        brush.bar(self.index["trim"], self.floor - 0.035, self.floor, 0.0, half, roundness=0.1)
        self._damage(half)
        self._end_lamps(is_front)
        self._grille(is_front)

    def _end_lamps(self, is_front: bool) -> None:
        brush, high, shape = self.brush, self.belt + 0.07, self.worn["lamps"]
        lamp = self.index["lamp" if is_front else "rear_lamp"]
        for side in (-0.205, 0.205):
            if shape == "round":
                brush.ellipse(lamp, side, high, 0.032, 0.032, roundness=0.0)
            elif shape == "square":
                brush.bar(lamp, high - 0.026, high + 0.026, side, 0.035)
            elif shape == "slim":
                brush.bar(lamp, high - 0.018, high + 0.004, side, 0.055)
            else:
                brush.ellipse(lamp, side - 0.026, high, 0.02, 0.02, roundness=0.0)
                brush.ellipse(lamp, side + 0.026, high, 0.02, 0.02, roundness=0.0)

    def _grille(self, is_front: bool) -> None:
        """The grille, whose shape depends on the brand; at the rear, the badge."""
        brush, high, brand = self.brush, self.belt + 0.07, self.worn["brand"]
        chrome, trim = self.index["chrome"], self.index["trim"]
        brush.bar(self.index["plate"], self.floor - 0.06, self.floor - 0.02, 0.0, 0.065)
        if not is_front:
            brush.ellipse(chrome, 0.0, high, 0.018, 0.018)
        elif brand == "Alder":
            brush.bar(trim, high - 0.03, high + 0.03, 0.0, 0.12)
        elif brand == "Birch":
            brush.block(chrome, high - 0.035, high + 0.035, (-0.12, 0.12), (-0.08, 0.08))
        elif brand == "Cedar":
            for row in (-0.024, 0.0, 0.024):
                brush.bar(chrome, high + row - 0.007, high + row + 0.007, 0.0, 0.13)
        elif brand == "Linden":
            brush.ellipse(trim, 0.0, high, 0.1, 0.035, roundness=0.0)
        else:
            for side in (-0.045, 0.045):
                brush.bar(trim, high - 0.032, high + 0.032, side, 0.035)

    def _damage(self, half: float) -> None:
        brush, kind = self.brush, self.worn["damage"]
        at = self.build["damaged_at"] * half
        if kind == "dented door":
            dent = brush.disc(at, (self.belt + self.floor) / 2.0, 0.07, 0.05)
            brush.dim(dent, 0.55)
        elif kind == "odd panel":
            panel = brush.area(at - 0.09, at + 0.09, self.belt, self.floor - 0.03)
            both = {self.index[part]: self.index["panel"] for part in ("paint", "paint_pattern")}
            brush.recolour(panel, both)
        elif kind == "scratched bumper":
            for row in (0.03, 0.05, 0.07):
                start = (half - 0.14, self.floor - row)
                brush.limb(
                    self.index["scratch"], start, (half - 0.01, self.floor - row - 0.012), (0.006, 0.006)
                )

    def _accessory(self, left: float, right: float) -> None:
        brush, kind, thing = self.brush, self.worn["accessory"], self.index["accessory"]
        middle = (left + right) / 2.0
        if kind == "roof rack":
            brush.block(thing, self.roof - 0.035, self.roof - 0.02, (left + 0.02, right - 0.02))
            for post in (left + 0.05, middle, right - 0.05):
                brush.bar(thing, self.roof - 0.03, self.roof + 0.005, post, 0.008)
        elif kind == "roof box":
            brush.limb(
                thing, (left + 0.08, self.roof - 0.04), (right - 0.08, self.roof - 0.04), (0.04, 0.035)
            )
        elif kind == "taxi sign":
            brush.bar(thing, self.roof - 0.05, self.roof + 0.005, middle, 0.05)
            brush.bar(self.index["lamp"], self.roof - 0.042, self.roof - 0.01, middle, 0.04)
        elif kind == "ladder":
            for row in (-0.045, -0.015):
                brush.block(thing, self.roof + row - 0.008, self.roof + row, (left - 0.04, right + 0.04))
            for rung in range(5):
                u = left + (right - left) * rung / 4.0
                brush.bar(thing, self.roof - 0.05, self.roof, u, 0.008)

    def _patches(self) -> None:
        """Patches on the lower body that only NIR or only TIR shows."""
        body = {self.index[part] for part in ("paint", "paint_pattern", "panel", "bonnet")}
        high = self.floor - self.belt
        for patch in self.vehicle.patches:
            u, v = patch.across * self.half, self.belt + patch.down * high
            wide = patch.wide * self.half * 0.6
            area = self.brush.area(u - wide, u + wide, v - patch.high * high, v + patch.high * high)
            body |= self.brush.tint(area, patch.channel, patch.value, body)
