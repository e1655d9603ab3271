"""Your own recordings, for TensorFlow Datasets."""
