"""Room: eval_linear."""
