"""The detectron2 engine: the real library, unmodified, through its public interface."""
