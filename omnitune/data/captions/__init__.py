"""Captioned pictures and clips."""
