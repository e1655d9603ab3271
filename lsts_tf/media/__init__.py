"""Pixels and files, without TensorFlow and Keras: films, pictures, pipes."""
