"""Maps to numbers: metrics, what is scored, tables and charts.

No TensorFlow is imported here.
"""
