"""Frames, maps and times to files: pictures, figures, films, reports."""
