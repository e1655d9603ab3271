"""AViMoS, the dataset of AIM 2024, for TensorFlow Datasets."""
