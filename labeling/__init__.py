"""Who compares what. Knows no model, no accelerator and no training."""
