import subprocess
import sys

import pytest

NEW_PAGES = """
import resource, sys, torch
from stmi.kernels.host_memory import keep_freed_memory

if sys.argv[1] == "keeping":
    keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(4_000_000) for _ in range(10)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_that_was_freed_is_there_for_the_next_step():
    def new_pages(mode):
        command = [sys.executable, "-c", NEW_PAGES, mode]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert 3 * new_pages("keeping") < new_pages("as usual")
