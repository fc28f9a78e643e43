"""From the downloads of a published data set to the paper's tables: what they need, and what they cost."""
