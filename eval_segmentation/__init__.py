"""Room: eval_segmentation."""
