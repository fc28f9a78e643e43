"""A query among a gallery whose embeddings and index are kept."""
