"""Fast forms of attention, linear layers and the MLP; hardware capabilities and host memory."""
