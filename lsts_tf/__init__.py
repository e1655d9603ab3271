"""Where people look in a video: LSTS in TensorFlow and Keras."""
