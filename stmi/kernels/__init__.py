"""Fast forms of attention, linear layers and QuickGELU, and what the hardware can do."""
