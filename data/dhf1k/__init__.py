"""DHF1K for TensorFlow Datasets."""
