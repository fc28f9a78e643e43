import re

import pytest

from tests.examples.command_line import EXAMPLES, ROOT

PRINTED = {"market_layout.py": "data_catalog/README.md"}


@pytest.mark.parametrize("file", PRINTED)
def test_readme_prints_the_example_as_it_is(file: str) -> None:
    text = (ROOT / PRINTED[file]).read_text()
    blocks = re.findall(r"^```\w+\n(.*?)^```$", text[text.index(f"`{file}`") :], re.DOTALL | re.MULTILINE)
    assert blocks[0] == (EXAMPLES / file).read_text()
