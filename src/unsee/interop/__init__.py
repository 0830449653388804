"""Scores and tasks for other tools."""
