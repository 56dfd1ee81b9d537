"""Room: eval_lowshot."""
