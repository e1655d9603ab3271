"""Hollywood-2 with gaze, for TensorFlow Datasets."""
