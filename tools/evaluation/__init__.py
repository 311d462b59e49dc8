"""What evaluate.py and fine-tuning measure with: data sets, metrics, ways to score a model, and tables."""
