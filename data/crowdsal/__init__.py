"""CrowdSAL for TensorFlow Datasets."""
