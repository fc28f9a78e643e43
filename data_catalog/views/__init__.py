"""The training view: pixels, foreground and text features as training reads them."""
