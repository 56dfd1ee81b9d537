"""Train, then find: the torchvision engine as a function."""

import torch

from eval_detection.config import DetectConfig
from eval_detection.results import Result
from eval_detection.samples import DetectionData
from eval_detection.torchvision_engine.names import to_detectron2
from eval_detection.torchvision_engine.predict import predict
from eval_detection.torchvision_engine.train import train
from siambench.backbone import Backbone
from siambench.evaluation import Job
from siambench.files import atomic_path


def detect(backbone: Backbone, data: DetectionData, config: DetectConfig, job: Job) -> list[Result]:
    """Train on ``data.train``; return what is found in ``data.test``, in px of the original images.

    Under several processes all take part, and the first returns the detections of all. In
    ``job.folder`` stay the losses (curve.jsonl) and the detector as detectron2's DetectionCheckpointer
    reads it (detector.pth).

    Raises:
        Diverged: a loss is not finite.
    """
    model = train(backbone, data, config, job)
    if job.world.rank == 0:
        with atomic_path(job.folder / "detector.pth") as temporary:
            torch.save({"model": to_detectron2(model.state_dict())}, temporary)
    return predict(model, data, config, job, backbone.meta)
