import itertools
import math

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from data_catalog.masks.segmenters.grabcut import ellipse
from data_catalog.masks.segmenters.mask_choice import Candidate, ChoiceSettings, candidate_score, choose
from data_catalog.samples.images import intersection_over_union
from data_catalog.synthetic import SyntheticSettings, render_sample


def rectangle(size: tuple[int, int], rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[rows, columns] = True
    return mask


def naive_score(mask: np.ndarray, predicted_iou: float, settings: ChoiceSettings) -> float:
    """The docstring's formula, pixel by pixel."""
    height, width = mask.shape
    pixels = [(y, x) for y in range(height) for x in range(width) if mask[y, x]]
    if not pixels or predicted_iou <= 0:
        return 0.0
    least, largest = settings.upright_area if height > width else settings.lying_area
    area = len(pixels) / (height * width)
    a = 1.0
    if area < least:
        a = math.exp(-((math.log(area / least) / settings.area_spread) ** 2) / 2)
    if area > largest:
        a = math.exp(-((math.log(area / largest) / settings.area_spread) ** 2) / 2)
    dy = sum((y + 0.5) / height for y, _ in pixels) / len(pixels) - 0.5
    dx = sum((x + 0.5) / width for _, x in pixels) / len(pixels) - 0.5
    outside = math.sqrt(dy**2 + dx**2) - settings.centre_radius
    c = math.exp(-(outside**2) / (2 * settings.centre_spread**2)) if outside > 0 else 1.0
    weights = (settings.iou_weight, settings.area_weight, settings.centre_weight)
    product = min(predicted_iou, 1.0) ** weights[0] * a ** weights[1] * c ** weights[2]
    return product ** (1 / sum(weights))


@pytest.mark.parametrize("size", [(24, 12), (12, 24), (9, 9)])
def test_score_and_choice_are_those_of_the_formula(size: tuple[int, int], rng: np.random.Generator) -> None:
    settings = ChoiceSettings(iou_weight=0.7, area_weight=0.4, centre_weight=1.3)
    for _ in range(20):
        candidates = []
        for source in ("RGB", "NIR", "TIR"):
            for _ in range(3):
                top, left = rng.integers(0, size[0]), rng.integers(0, size[1])
                mask = rectangle(
                    size, slice(top, top + rng.integers(0, 9)), slice(left, left + rng.integers(1, 9))
                )
                candidates.append(Candidate(mask, float(rng.uniform(-0.1, 1.1)), source))
        scores = [naive_score(one.mask, one.predicted_iou, settings) for one in candidates]
        assert [candidate_score(one, settings) for one in candidates] == pytest.approx(scores)
        found = choose(candidates, settings)
        best = candidates[int(np.argmax(scores))]
        assert found.mask is best.mask
        assert (found.source, found.score) == (best.source, pytest.approx(max(scores)))


def test_perfect_candidate_scores_one() -> None:
    settings = ChoiceSettings(upright_area=(0.25, 0.25), centre_radius=0)
    mask = rectangle((16, 8), slice(4, 12), slice(2, 6))
    assert candidate_score(Candidate(mask, 1.0, "RGB"), settings) == pytest.approx(1.0)


@pytest.mark.parametrize("predicted_iou", [0.0, -0.5, math.nan])
def test_candidate_without_quality_scores_zero(predicted_iou: float) -> None:
    mask = rectangle((16, 8), slice(4, 12), slice(2, 6))
    assert candidate_score(Candidate(mask, predicted_iou, "RGB"), ChoiceSettings()) == 0


def test_empty_mask_is_chosen_only_where_all_are_empty() -> None:
    empty, speck = np.zeros((16, 8), dtype=bool), rectangle((16, 8), slice(0, 1), slice(0, 1))
    candidates = [Candidate(empty, 0.99, "RGB"), Candidate(speck, 0.1, "TIR")]
    assert choose(candidates, ChoiceSettings()).source == "TIR"
    found = choose([Candidate(empty, 0.9, "RGB"), Candidate(empty, 0.95, "NIR")], ChoiceSettings())
    assert (found.source, found.score) == ("RGB", 0.0)


def test_of_equal_scores_the_earlier_wins() -> None:
    mask = rectangle((16, 8), slice(4, 12), slice(2, 6))
    for order in itertools.permutations(("RGB", "NIR", "TIR")):
        candidates = [Candidate(mask, 0.5, source) for source in order]
        assert choose(candidates, ChoiceSettings()).source == order[0]


@pytest.mark.parametrize("wrong", ["shirt", "background", "bystander"])
def test_whole_centred_object_beats_a_surer_part(wrong: str) -> None:
    size = (64, 32)
    person = rectangle(size, slice(6, 60), slice(10, 22))
    other = {
        "shirt": rectangle(size, slice(16, 26), slice(11, 21)),
        "background": ~person,
        "bystander": rectangle(size, slice(6, 60), slice(0, 9)),
    }[wrong]
    found = choose([Candidate(other, 0.9, "RGB"), Candidate(person, 0.8, "TIR")], ChoiceSettings())
    assert found.source == "TIR"


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="upright_area"):
        ChoiceSettings(upright_area=(0.0, 0.5))
    with pytest.raises(ValidationError, match="expected the least share first"):
        ChoiceSettings(lying_area=(0.5, 0.4))
    with pytest.raises(ValidationError, match="are all 0: give one of them more"):
        ChoiceSettings(iou_weight=0, area_weight=0, centre_weight=0)
    with pytest.raises(ValidationError, match="area_spread"):
        ChoiceSettings(area_spread=0)


def cut_out(image: np.ndarray, source: str) -> list[Candidate]:
    """Three masks from one modality alone, small to large, and how far each stands out from its border."""
    size = image.shape[:2]
    candidates = []
    for core, likely in (
        ((0.12, 0.1), (0.2, 0.18)),
        ((0.25, 0.1), (0.33, 0.2)),
        ((0.38, 0.07), (0.45, 0.22)),
    ):
        labels = np.full(size, cv2.GC_PR_BGD, dtype=np.uint8)
        labels[ellipse(size, likely)] = cv2.GC_PR_FGD
        labels[~ellipse(size, (0.55, 0.4))] = cv2.GC_BGD
        labels[ellipse(size, core)] = cv2.GC_FGD
        cv2.setRNGSeed(1)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(np.ascontiguousarray(image), labels, (0, 0, 1, 1), *models, 2, cv2.GC_INIT_WITH_MASK)
        mask = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
        border = (cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=2) > 0) & ~mask
        inside, outside = image[mask].astype(float), image[border].astype(float)
        spread = np.linalg.norm(inside.std(0)) + np.linalg.norm(outside.std(0)) + 4
        contrast = float(np.linalg.norm(inside.mean(0) - outside.mean(0)) / spread)
        candidates.append(Candidate(mask, contrast / (1 + contrast), source))
    return candidates


def test_choice_across_modalities_helps_at_night_and_costs_nothing_by_day() -> None:
    settings = SyntheticSettings()
    overlaps: dict[tuple[str, bool], list[float]] = {}
    for identity in settings.identities("val"):
        # Darkness is 0 at camera 0 and 1 at camera 3.
        for camera in (0, 3):
            sample = render_sample(settings, identity, camera, shot=0)
            images = zip(sample.pixels, ("RGB", "NIR", "TIR"), strict=True)
            candidates = [one for image, source in images for one in cut_out(image, source)]
            for which, some in (("RGB", candidates[:3]), ("all", candidates)):
                found = choose(some, ChoiceSettings())
                iou = intersection_over_union(found.mask, sample.mask > 0)
                overlaps.setdefault((which, camera == 3), []).append(iou)
    mean = {case: float(np.mean(values)) for case, values in overlaps.items()}
    assert mean["all", True] > mean["RGB", True] + 0.15
    assert mean["all", False] > mean["RGB", False] - 0.01
