"""UCF Sports with gaze, for TensorFlow Datasets."""
