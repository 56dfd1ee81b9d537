"""Train, then find: the detectron2 engine as a function."""

import torch
from detectron2.config import CfgNode, get_cfg
from torch import nn

from eval_detection.config import DetectConfig
from eval_detection.detectron2_engine.data import mask_format
from eval_detection.detectron2_engine.evaluators import find
from eval_detection.detectron2_engine.settings import settings
from eval_detection.detectron2_engine.train import quiet, train
from eval_detection.results import Result
from eval_detection.samples import DetectionData
from siambench.backbone import Backbone, BackboneMeta
from siambench.evaluation import Job
from siambench.files import atomic_path, write_text


def detect(backbone: Backbone, data: DetectionData, config: DetectConfig, job: Job) -> list[Result]:
    """Train on ``data.train``; return what is found in ``data.test``, in px of the original images.

    Under several processes all take part, and the first returns the detections of all. In
    ``job.folder`` stay the detector (detector.pth), its configuration (detectron2.yaml), the losses
    (curve.jsonl) and what detectron2's own evaluators say (detectron2.json).

    Raises:
        Diverged: a loss is not finite.
        UserError: the batch does not suit the processes, bf16 is asked for on a CPU, or the backbone
            does not fit.
    """
    cfg = configuration(backbone.meta, data, config, job)
    model = train(backbone, data.train, config, cfg, job)
    if job.world.rank == 0:
        _keep(model, cfg, job)
    with quiet():
        return find(model, data, config, cfg, job)


def configuration(
    meta: BackboneMeta, data: DetectionData, config: DetectConfig, job: Job
) -> CfgNode:
    """detectron2's defaults, changed by the protocol and by where this process works."""
    cfg = get_cfg()
    tree = settings(
        config,
        meta,
        len(data.classes),
        job.world.size,
        device=str(job.device),
        mask_format=mask_format(data.train),
    )
    tree["SEED"] = job.seed % 2**31
    tree["OUTPUT_DIR"] = str(job.folder)
    tree["DATALOADER"] = {"NUM_WORKERS": job.workers}
    cfg.merge_from_other_cfg(CfgNode(tree))
    cfg.freeze()
    return cfg


def _keep(model: nn.Module, cfg: CfgNode, job: Job) -> None:
    """Leave the detector as detectron2's DetectionCheckpointer reads it."""
    write_text(job.folder / "detectron2.yaml", cfg.dump())
    with atomic_path(job.folder / "detector.pth") as temporary:
        torch.save({"model": model.state_dict()}, temporary)
