"""Recordings of one's own, for TensorFlow Datasets."""
