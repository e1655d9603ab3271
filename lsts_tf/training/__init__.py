"""Features to a model: batches, steps, devices, checkpoints, curves."""
