"""Measurements in, something a person can read out."""
