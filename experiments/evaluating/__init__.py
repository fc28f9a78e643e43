"""A trained model on a test view: what is evaluated, over all nodes of a cluster, and the files of it."""
