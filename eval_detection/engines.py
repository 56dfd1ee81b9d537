"""The two libraries that do the work: which one, and is it there."""

from importlib import import_module
from importlib.util import find_spec

from eval_detection.config import DetectConfig
from eval_detection.results import Result
from eval_detection.samples import DetectionData
from siambench.backbone import Backbone
from siambench.device import pick_device
from siambench.errors import UserError
from siambench.evaluation import Job

INSTALL = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"


def engine_of(config: DetectConfig) -> str:
    """The engine that ``config`` asks for; by default detectron2 where it is installed.

    Raises:
        UserError: detectron2 is asked for and not installed, or cannot do what is asked for.
    """
    there = find_spec("detectron2") is not None
    if config.engine == "detectron2" and not there:
        raise UserError(
            f"engine: detectron2 is not installed; install it as {INSTALL} says, or use --engine "
            "torchvision, which computes the same"
        )
    engine = config.engine or ("detectron2" if there else "torchvision")
    if engine == "detectron2" and config.bf16 and pick_device(config.device).type == "cpu":
        raise UserError(
            "bf16: detectron2's mixed precision needs a GPU; leave --bf16 out, or use --engine "
            "torchvision"
        )
    return engine


def detect(backbone: Backbone, data: DetectionData, config: DetectConfig, job: Job) -> list[Result]:
    """Train with the engine of ``config``; return what it finds in ``data.test``."""
    engine = import_module(f"eval_detection.{engine_of(config)}_engine.engine")
    found: list[Result] = engine.detect(backbone, data, config, job)
    return found
