import re

import pytest

from tests.examples.command_line import EXAMPLES

PRINTED = (
    "market_layout.py",
    "warm_segmenter.py",
    "template_captioner.py",
    "small_recipe.yaml",
    "ablation_row.sh",
    "embed_with_onnx.py",
)


@pytest.mark.parametrize("file", PRINTED)
def test_readme_prints_the_example_as_it_is(file: str) -> None:
    text = (EXAMPLES / "README.md").read_text()
    after = text[text.index(f"\n`{file}`") :]
    blocks = re.findall(r"^```\w+\n(.*?)^```$", after, re.DOTALL | re.MULTILINE)
    assert blocks[0] == (EXAMPLES / file).read_text()
