"""Calibration: from text to token windows, and from block inputs to streaming statistics."""
