"""A model for elsewhere: a hub's folder, SavedModel and LiteRT."""
