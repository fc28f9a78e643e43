"""The captions and text-features tables, and where captions come from."""
