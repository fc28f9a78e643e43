import subprocess
import sys

WORKERS_IMPORT = ("ingest", "masks", "captions", "text_features", "view", "image_hashes", "llm.captioner")


def test_what_workers_import_of_the_catalog_does_not_wait_for_torch():
    modules = [f"data_catalog.{name}" for name in WORKERS_IMPORT]
    code = f"import sys, {', '.join(modules)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == "False"
