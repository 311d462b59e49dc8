"""What `fastinfer evaluate` and fine-tuning measure with: data sets, metrics, ways to score a model, and tables."""
