"""Room: eval_detection."""
