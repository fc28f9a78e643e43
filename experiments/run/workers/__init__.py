"""What trains a run: the training loop, its workers, and how Ray Train starts them."""
