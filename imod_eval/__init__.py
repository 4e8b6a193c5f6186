"""Evaluation: predictions of a model folder on sample files, under conditions that take media away, and scores."""
