"""Room: pipeline."""
