import torch

from stmi import keyed_random


def test_random_numbers_depend_on_seed_purpose_and_counters_only():
    first = keyed_random.generator(1, "flip", 3, 4).random(5)
    keyed_random.generator(1, "crop", 3, 4).random(100)
    assert (keyed_random.generator(1, "flip", 3, 4).random(5) == first).all()
    others = [(2, "flip", 3, 4), (1, "crop", 3, 4), (1, "flip", 4, 3), (1, "flip", 34)]
    assert all((keyed_random.generator(*other).random(5) != first).all() for other in others)


def test_random_numbers_are_the_same_on_every_machine():
    numbers = keyed_random.generator(0, "flip", 1).integers(0, 1000, 4)
    assert numbers.tolist() == [23, 373, 448, 947]


def test_construction_is_keyed_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with keyed_random.seeded_construction(1, "layer"):
        first = torch.nn.Linear(3, 3).weight
    assert torch.equal(torch.rand(3), expected)
    with keyed_random.seeded_construction(1, "layer"):
        assert torch.equal(torch.nn.Linear(3, 3).weight, first)
