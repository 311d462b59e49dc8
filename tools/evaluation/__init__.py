"""What tools/evaluate.py measures with: tasks, their kinds and files, models, tables, and the picture of quality against speed."""
