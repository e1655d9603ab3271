"""A model as a graph of its own: SavedModel and LiteRT."""
