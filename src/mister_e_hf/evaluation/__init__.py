"""Predictions scored."""
