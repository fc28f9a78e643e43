"""The masks table, its statistics, and the segmenters."""
