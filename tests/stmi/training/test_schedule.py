import math

import pytest

from stmi.config import OptimConfig
from stmi.training.schedule import learning_rate
from tests.stmi import golden


def test_rate_warms_up_and_falls_along_a_cosine():
    config = OptimConfig(learning_rate=1.0, final_learning_rate=0.1, warmup_epochs=2)
    rates = [learning_rate(config, epoch, 10) for epoch in (0, 1, 2, 6, 10)]
    assert rates == pytest.approx([0, 0.5, 1.0, 0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2, 0.1])


@pytest.mark.parametrize("epochs", [50, 20])
def test_released_schedule_gives_the_released_rates(epochs):
    config = OptimConfig(schedule="released")
    rates = [learning_rate(config, epoch + 0.5, epochs) for epoch in range(epochs)]
    assert rates == pytest.approx(golden.load("lr_schedule")[f"epochs_{epochs}"].tolist(), rel=1e-6)
