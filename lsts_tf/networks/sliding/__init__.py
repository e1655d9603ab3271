"""I3D over every window of a video; `network` is the door."""
