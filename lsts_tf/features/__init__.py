"""Frames to features: datasets, flow, preprocessing, front ends, stores."""
