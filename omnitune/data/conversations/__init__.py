"""Conversations about pictures and clips."""
