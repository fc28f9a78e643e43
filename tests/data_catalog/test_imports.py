import subprocess
import sys

WORKERS_IMPORT = (
    "samples.ingestion",
    "masks.mask_table",
    "captions.caption_table",
    "captions.text_feature_table",
    "captions.llm.captioner",
    "views.training_view",
    "checks.image_hashes",
)


def test_what_workers_import_of_the_catalog_does_not_wait_for_torch():
    modules = [f"data_catalog.{name}" for name in WORKERS_IMPORT]
    code = f"import sys, {', '.join(modules)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == "False"
