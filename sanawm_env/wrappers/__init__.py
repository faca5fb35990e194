"""Gymnasium wrappers, one concern a file: recording, per-frame view, video, episode stores, Rerun."""
