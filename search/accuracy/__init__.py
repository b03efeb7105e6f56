"""Estimates of a candidate's accuracy that cost less than training it, one module each."""
