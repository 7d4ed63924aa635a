"""Predictions and scores of models on images."""
