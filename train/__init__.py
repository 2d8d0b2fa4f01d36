"""Training, evaluation data and the command line of masked_swin."""
