"""OSIE, photographs with gaze, for TensorFlow Datasets."""
