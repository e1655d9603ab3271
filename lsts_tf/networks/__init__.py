"""Pure Keras 3: I3D and its weights, the shared I3D, decoders, losses.

Nothing here imports TensorFlow; all of it runs on JAX and PyTorch too.
"""
