"""What must hold of a data set before a GPU is used for it."""
