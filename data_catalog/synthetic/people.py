"""Painting of a person: body, clothes and belongings, in a pose, from one side.

Coordinates are shares of the body height: v is 0 at the top of the head and 1 at the soles, u is 0 in
the middle. The figure is painted facing right; the brush mirrors it.
"""

from dataclasses import dataclass

from data_catalog.synthetic.canvas import Brush, Region
from data_catalog.synthetic.identities import Identity
from data_catalog.synthetic.patterns import paint_pattern
from data_catalog.synthetic.random_choices import RandomChoices

LONG_SLEEVES = ("shirt", "jacket", "coat", "hoodie")
FAR = 0.72
"""Light on the far arm and leg."""


@dataclass(frozen=True)
class Pose:
    """How a person stands in one sample.

    Attributes:
        view: The visible side: front, back or side.
        stride: How far the legs are apart, 0 to 1.
        swing: How far the arms swing, -1 to 1.
    """

    view: str
    stride: float
    swing: float


def choose_pose(draws: RandomChoices) -> Pose:
    """A random walking or standing pose."""
    return Pose(draws.pick(("front", "back", "side", "side")), draws.uniform(), draws.uniform(-1.0, 1.0))


class PersonPainter:
    """Paints one person in one pose.

    Attributes:
        index: Index of every part's material on the canvas, by the part's name.
    """

    def __init__(self, brush: Brush, person: Identity, pose: Pose) -> None:
        self.brush, self.pose, self.person = brush, pose, person
        self.worn, self.build = person.attributes, person.build
        self.index = {part: brush.canvas.add(material) for part, material in person.materials.items()}
        self.is_side = pose.view == "side"
        narrow = 0.78 if self.is_side else 1.0
        self.shoulder, self.waist, self.hip = (
            self.build[part] * narrow for part in ("shoulder", "waist", "hip")
        )
        self.neck = self.build["head"] + 0.012
        self.lean = self.build["stoop"] if self.is_side else 0.0

    def paint(self) -> None:
        """Paint from back to front."""
        if self.worn["bag"] == "backpack" and self.is_side:
            self._backpack()
        self._leg(far=True)
        if self.is_side:
            self._arm(far=True)
        self._leg(far=False)
        self._skirt()
        torso = self._torso()
        self._details()
        cloth = (self.index["upper"], self.index["upper_pattern"])
        paint_pattern(self.brush, torso, self.person.pattern, cloth, middle=0.36, period=0.06)
        self._patches()
        self._head()
        if not self.is_side:
            self._arm(far=True)
        self._arm(far=False)
        self._bag()
        self._carried()

    def _feet(self, far: bool) -> tuple[float, float, float, float]:
        """Knee and ankle of a leg: u, v, u, v."""
        side = -1.0 if far else 1.0
        if self.is_side:
            reach = side * 0.115 * self.pose.stride
            return reach * 0.55 + 0.015, 0.74, reach, 0.945 - (0.03 * self.pose.stride if far else 0.0)
        apart = side * (0.05 + 0.02 * self.pose.stride)
        return apart, 0.74, apart * 1.05, 0.945 - (0.03 * self.pose.stride if far else 0.0)

    def _leg(self, far: bool) -> None:
        brush, thick = self.brush, self.build["limb"]
        light = FAR if far else 1.0
        knee_u, knee_v, foot_u, foot_v = self._feet(far)
        hip_u = (0.0 if self.is_side else 0.05) * (-1.0 if far else 1.0)
        garment = self.worn["lower_garment"]
        upper = self.index["lower"] if garment in ("trousers", "shorts") else self.index["skin"]
        lower = self.index["lower"] if garment == "trousers" else self.index["skin"]
        width = 1.15 if garment == "trousers" else 0.9
        calf, thigh = (0.036 * thick * width, 0.026 * thick * width), (0.055 * thick, 0.04 * thick * width)
        brush.limb(lower, (knee_u, knee_v), (foot_u, foot_v), calf, light, 0.15)
        brush.limb(upper, (hip_u, 0.5), (knee_u, knee_v - 0.02), thigh, light, 0.15)
        toe = foot_u + (0.03 if self.is_side else 0.006 * (-1.0 if far else 1.0))
        kind, shoes = self.worn["shoes"], self.index["shoes"]
        if kind == "boots":
            brush.limb(shoes, (foot_u, foot_v - 0.07), (foot_u, foot_v + 0.01), (0.038, 0.038), light)
        cover = self.index["skin"] if kind == "sandals" else shoes
        brush.ellipse(cover, toe, foot_v + 0.022, 0.058 if self.is_side else 0.042, 0.03, light)
        if kind == "sandals":
            strap = (foot_u - 0.036, foot_u + 0.05)
            brush.block(shoes, foot_v + 0.004, foot_v + 0.026, strap, light=light)
        elif kind == "trainers":
            middle, half = (toe, 0.055) if self.is_side else (foot_u, 0.04)
            brush.bar(self.index["sole"], foot_v + 0.038, foot_v + 0.052, middle, half, light=light)

    def _skirt(self) -> None:
        garment, hip = self.worn["lower_garment"], self.hip
        if garment in ("skirt", "long skirt"):
            hem = 0.68 if garment == "skirt" else 0.86
            flare = hip * 1.35
            self.brush.block(self.index["lower"], 0.46, hem, (-hip, hip), (-flare, flare), roundness=0.3)
        else:
            self.brush.bar(self.index["lower"], 0.46, self.build["crotch"] + 0.03, 0.0, hip, roundness=0.25)

    def _torso(self) -> Region:
        """The upper garment, without sleeves."""
        hem = {"coat": 0.70, "jacket": 0.53, "hoodie": 0.53, "t-shirt": 0.51, "vest": 0.5}.get(
            self.worn["upper_garment"], 0.52
        )
        brush, upper, neck = self.brush, self.index["upper"], self.neck
        shoulder, waist, hip = self.shoulder, self.waist, self.hip
        brush.limb(
            self.index["skin"], (self.lean, neck - 0.04), (0.0, neck + 0.02), (0.03, 0.034), light=0.85
        )
        slope = 0.6 if self.worn["upper_garment"] != "vest" else 0.45
        collar = shoulder * slope
        brush.block(upper, neck, neck + 0.035, (-collar, collar), (-shoulder, shoulder), roundness=0.3)
        brush.block(upper, neck + 0.035, 0.38, (-shoulder, shoulder), (-waist, waist), roundness=0.3)
        flare = hip * 1.2 if self.worn["upper_garment"] == "coat" else hip * 1.04
        brush.block(upper, 0.38, hem, (-waist, waist), (-flare, flare), roundness=0.3)
        return brush.area(-1.3 * shoulder, 1.3 * shoulder, neck, hem)

    def _details(self) -> None:
        """Zip, buttons, collar, hood and pocket: what distinguishes the upper garments."""
        garment, brush, neck = self.worn["upper_garment"], self.brush, self.neck
        front = 0.6 * self.shoulder if self.is_side else 0.0
        upper, skin = self.index["upper"], self.index["skin"]
        if garment in ("jacket", "coat") and self.pose.view != "back":
            brush.bar(upper, neck, 0.69 if garment == "coat" else 0.52, front, 0.008, light=0.62)
            brush.block(upper, neck - 0.012, neck + 0.03, (-0.052, 0.052), (-0.03, 0.03), light=0.62)
        elif garment == "shirt" and self.pose.view != "back":
            brush.block(
                upper, neck - 0.006, neck + 0.03, (front - 0.04, front + 0.04), (front, front), light=1.15
            )
            for row in range(4):
                brush.ellipse(upper, front, neck + 0.06 + 0.075 * row, 0.009, 0.009, light=0.5)
        elif garment == "hoodie":
            brush.ellipse(upper, 0.0, neck, 0.075, 0.035, light=0.75)
            if not self.is_side and self.pose.view == "front":
                brush.block(upper, 0.42, 0.49, (-0.045, 0.045), (-0.065, 0.065), light=0.75)
        elif garment == "vest" and self.pose.view == "front":
            brush.ellipse(skin, 0.0, neck + 0.01, 0.05, 0.055, light=0.95)
        elif garment == "t-shirt" and not self.is_side:
            brush.ellipse(skin, 0.0, neck, 0.042, 0.024, light=0.9)

    def _patches(self) -> None:
        """Patches that only NIR or only TIR shows."""
        cloth = {self.index["upper"], self.index["upper_pattern"]}
        high = 0.52 - self.neck
        for patch in self.person.patches:
            u, v = patch.across * self.shoulder, self.neck + patch.down * high
            wide = patch.wide * self.shoulder
            area = self.brush.area(u - wide, u + wide, v - patch.high * high, v + patch.high * high)
            cloth |= self.brush.tint(area, patch.channel, patch.value, cloth)

    def _head(self) -> None:
        brush, skin, hair = self.brush, self.index["skin"], self.index["hair"]
        high = self.build["head"] / 2.0
        wide, style, lean = high * 0.78, self.worn["hair"], self.lean
        is_back = self.pose.view == "back"
        face = 0.018 if self.is_side else 0.0
        if style == "long":
            brush.block(
                hair, high, high * 2.9, (lean - wide * 1.15, lean + wide * (0.5 if self.is_side else 1.15))
            )
        if style == "ponytail" and self.is_side:
            brush.limb(hair, (lean - wide, high * 0.8), (lean - wide * 1.6, high * 2.3), (0.026, 0.016))
        brush.ellipse(skin, lean, high, wide, high, roundness=0.15)
        if style != "bald":
            brush.ellipse(hair, lean - face, high * 0.72, wide * 1.06, high * 0.78)
            if is_back:
                brush.ellipse(hair, lean, high * 0.9, wide * 1.04, high * 0.98)
            else:
                brush.ellipse(skin, lean + face * 1.3, high * 1.2, wide * 0.86, high * 0.8, roundness=0.15)
        if style == "bun":
            brush.ellipse(hair, lean - (wide if self.is_side else 0.0), high * 0.12, 0.03, 0.026)
        if style == "ponytail" and is_back:
            brush.limb(hair, (lean, high * 0.9), (lean, high * 2.6), (0.024, 0.016), light=0.8)
        if style == "long" and is_back:
            brush.bar(hair, high, high * 2.9, lean, wide * 1.1, roundness=0.2)
        if not is_back:
            self._face(lean + face, high, wide)
        self._hat(lean, high, wide)

    def _face(self, u: float, high: float, wide: float) -> None:
        """Eyes or glasses."""
        brush, look = self.brush, self.worn["glasses"]
        eyes = (0.45 * wide,) if self.is_side else (-0.42 * wide, 0.42 * wide)
        if look != "none":
            brush.block(self.index["frame"], high * 1.0, high * 1.1, (u - 0.8 * wide, u + 0.85 * wide))
        for eye in eyes:
            if look == "none":
                brush.ellipse(self.index["frame"], u + eye, high * 1.06, 0.008, 0.009)
            else:
                brush.ellipse(self.index["frame"], u + eye, high * 1.08, 0.023, 0.022)
                lens = self.index["glass"] if look == "sunglasses" else self.index["skin"]
                brush.ellipse(lens, u + eye, high * 1.08, 0.014, 0.013, light=1.1)

    def _hat(self, u: float, high: float, wide: float) -> None:
        brush, hat, kind = self.brush, self.index["hat"], self.worn["hat"]
        if kind == "none":
            return
        crown = 1.0 if kind == "beanie" else 0.86
        brush.ellipse(hat, u, high * 0.56, wide * 1.1, high * crown * 0.62)
        brush.bar(hat, high * 0.42, high * 0.84, u, wide * 1.08, roundness=0.2)
        if kind == "cap" and self.is_side:
            brush.limb(hat, (u, high * 0.8), (u + wide * 1.8, high * 0.84), (0.018, 0.012), light=0.75)
        elif kind == "cap" and self.pose.view == "front":
            brush.ellipse(hat, u, high * 0.8, wide * 0.95, high * 0.13, light=0.75)
        if kind == "sun hat":
            brush.ellipse(hat, u, high * 0.82, wide * 1.9, high * 0.2, light=0.85)
        if kind == "beanie":
            brush.bar(hat, high * 0.66, high * 0.88, u, wide * 1.12, light=0.75)

    def _hand(self, far: bool) -> tuple[float, float, float, float]:
        """Elbow and hand of an arm: u, v, u, v."""
        side, swing = (-1.0 if far else 1.0), self.pose.swing
        if self.is_side:
            reach = side * swing * 0.13
            return reach * 0.5 - 0.012, 0.36, reach + 0.02, 0.485 - abs(reach) * 0.3
        out = self.shoulder + 0.012
        return side * (out + 0.016), 0.36, side * (out + 0.012 + 0.012 * swing * side), 0.49

    def _arm(self, far: bool) -> None:
        brush, thick, light = self.brush, self.build["limb"], FAR if far and self.is_side else 0.9
        elbow_u, elbow_v, hand_u, hand_v = self._hand(far)
        start = (0.0 if self.is_side else (-1.0 if far else 1.0) * (self.shoulder - 0.014), self.neck + 0.045)
        garment = self.worn["upper_garment"]
        sleeve = self.index["skin"] if garment == "vest" else self.index["upper"]
        forearm = self.index["upper"] if garment in LONG_SLEEVES else self.index["skin"]
        brush.ellipse(self.index["skin"], hand_u, hand_v + 0.008, 0.022, 0.026, light)
        wrist = (hand_u, hand_v - 0.018)
        brush.limb(forearm, (elbow_u, elbow_v), wrist, (0.026 * thick, 0.021 * thick), light)
        if garment == "t-shirt":
            brush.limb(self.index["skin"], start, (elbow_u, elbow_v), (0.03 * thick, 0.026 * thick), light)
            elbow_u, elbow_v = (start[0] + elbow_u) / 2.0, (start[1] + elbow_v) / 2.0
        brush.limb(sleeve, start, (elbow_u, elbow_v), (0.036 * thick, 0.028 * thick), light)

    def _backpack(self) -> None:
        top = (-self.shoulder - 0.012, self.neck + 0.08)
        self.brush.limb(self.index["bag"], top, (-self.shoulder, 0.43), (0.055, 0.06))

    def _bag(self) -> None:
        brush, bag, kind, view = self.brush, self.index["bag"], self.worn["bag"], self.pose.view
        shoulder, neck = self.shoulder, self.neck
        if kind == "backpack" and view == "back":
            brush.limb(bag, (0.0, neck + 0.1), (0.0, 0.42), (shoulder * 0.75, shoulder * 0.8))
            brush.bar(bag, 0.36, 0.45, 0.0, shoulder * 0.5, light=0.7)
        elif kind == "backpack":
            for strap in (-0.55, 0.55) if view == "front" else (0.1,):
                end = (strap * shoulder * 1.2, 0.36)
                brush.limb(bag, (strap * shoulder, neck + 0.01), end, (0.014, 0.014))
        elif kind == "shoulder bag":
            # Worn on the right: the brush shows it on the other side of the image from behind.
            side = 1.0 if view == "back" else -1.0
            hang = -0.04 if self.is_side else side * (self.hip + 0.035)
            strap = 0.0 if self.is_side else -side * shoulder * 0.6
            brush.limb(bag, (strap, neck + 0.01), (hang, 0.5), (0.012, 0.012), light=0.8)
            brush.bar(bag, 0.47, 0.59, hang, 0.055, roundness=0.25)
        elif kind == "handbag":
            _, _, hand_u, hand_v = self._hand(far=view == "front")
            for side in (-0.02, 0.02):
                end = (hand_u + side, hand_v + 0.06)
                brush.limb(bag, end, (hand_u, hand_v + 0.01), (0.008, 0.008), light=0.8)
            brush.bar(bag, hand_v + 0.05, hand_v + 0.14, hand_u, 0.045, roundness=0.2)

    def _carried(self) -> None:
        brush, carried, kind = self.brush, self.index["carried"], self.worn["carried_object"]
        _, _, hand_u, hand_v = self._hand(far=self.pose.view == "back")
        if kind == "umbrella":
            brush.limb(carried, (hand_u - 0.01, hand_v - 0.03), (hand_u + 0.03, 0.86), (0.02, 0.008))
        elif kind == "suitcase":
            case = hand_u + (-0.13 if self.is_side else 0.06 if hand_u > 0 else -0.06)
            brush.limb(self.index["frame"], (hand_u, hand_v), (case, 0.66), (0.008, 0.008))
            brush.bar(carried, 0.66, 0.97, case, 0.075, roundness=0.2)
        elif kind == "box" and self.pose.view != "back":
            front = 0.09 if self.is_side else 0.0
            brush.bar(carried, 0.36, 0.48, front, 0.085, roundness=0.1)
            brush.bar(carried, 0.36, 0.48, front, 0.01, light=0.7)
        elif kind == "bottle":
            brush.limb(carried, (hand_u, hand_v - 0.05), (hand_u, hand_v + 0.02), (0.01, 0.02))
