"""Captions by a multi-modal language model: questions, the endpoint, the kept answers, what they cost."""
