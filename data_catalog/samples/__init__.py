"""The samples table: ingestion, images, held-out identities."""
