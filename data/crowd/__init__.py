"""Crowd, photographs with gaze, for TensorFlow Datasets."""
