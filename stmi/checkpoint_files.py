"""Names of the files of a checkpoint, whose digests are in `SHA256SUMS` (see `stmi.checksums`)."""

MODEL_FILE = "model.safetensors"
"""The model's weights at its epoch."""
TRAINING_FILE = "training.pt"
"""The optimiser's state, and how far the run is."""
HISTORY_FILE = "history.json"
"""What the run had reported until then."""
QUERIES_FILE = "queries.parquet"
"""How every test query ranked at each epoch that was tested: `evaluation.QUERY_SCHEMA` and `epoch`."""
REPORTED_FILE = "reported.safetensors"
"""The weights at the best epoch so far, where the run does not report the last one."""
EMBEDDINGS_FILE = "test_embeddings.safetensors"
"""In the last checkpoint of a finished run: every retrieval feature of the test view's rows."""

OF_EVERY_CHECKPOINT = (MODEL_FILE, TRAINING_FILE, HISTORY_FILE, QUERIES_FILE)
