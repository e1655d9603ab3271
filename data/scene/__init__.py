"""Scene, photographs with gaze, for TensorFlow Datasets."""
