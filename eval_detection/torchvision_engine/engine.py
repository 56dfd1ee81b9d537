"""Train, then find: the torchvision engine as a function."""

from eval_detection.config import DetectConfig
from eval_detection.results import Result
from eval_detection.samples import DetectionData
from eval_detection.torchvision_engine.predict import predict
from eval_detection.torchvision_engine.train import train
from siambench.backbone import Backbone
from siambench.evaluation import Job


def detect(backbone: Backbone, data: DetectionData, config: DetectConfig, job: Job) -> list[Result]:
    """Train on ``data.train``; return what is found in ``data.test``, in px of the original images.

    Under several processes all take part, and the first returns the detections of all.

    Raises:
        Diverged: a loss is not finite.
        UserError: the batch cannot be shared by the processes.
    """
    if config.batch_size % job.world.size:
        raise job.world.problem(
            f"batch_size {config.batch_size} cannot be shared by {job.world.size} processes; choose "
            "a multiple"
        )
    return predict(train(backbone, data, config, job), data, config, job, backbone.meta)
