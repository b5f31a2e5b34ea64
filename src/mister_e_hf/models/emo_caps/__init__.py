"""EMO-Caps: capsules and cross-modal attention, after a description."""
