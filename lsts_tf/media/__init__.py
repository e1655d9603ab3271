"""Pixels and files: films, pictures, pipes, and what is written whole.

No TensorFlow and no Keras is imported here.
"""
