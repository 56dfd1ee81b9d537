"""Room: pretrain."""
