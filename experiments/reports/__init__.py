"""The page of a finished study: tables, pictures, rank lists, attention, provenance."""
