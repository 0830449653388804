"""Attacks that try to bring the forgotten back, and probes that look for it inside."""
