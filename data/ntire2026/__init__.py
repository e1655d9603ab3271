"""The dataset of NTIRE 2026 for TensorFlow Datasets."""
