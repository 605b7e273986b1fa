"""Evaluation: what a model was measured with, item by item, and what that allows to conclude."""
