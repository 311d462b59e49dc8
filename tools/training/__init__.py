"""What train.py runs: recipes, text, the trainable encoder, objectives, one loop, and the commands pretrain, distill and finetune."""
