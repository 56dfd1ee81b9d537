"""The whole run: plan it, do what is not done yet, say how it stands; and the ``siambench`` command."""

from siambench.config import Verb

VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            name="run",
            help="Do all of a run file that is not done yet, and report",
            config="pipeline.config:RunConfig",
            run="pipeline.run:run",
            positional=("file",),
        ),
        Verb(
            name="plan",
            help="Show what a run file would do: what is done, what will run, how long, how much disk",
            config="pipeline.config:RunConfig",
            run="pipeline.plan:plan",
            positional=("file",),
        ),
        Verb(
            name="status",
            help="Show how a run stands, live, from any terminal",
            config="pipeline.config:StatusConfig",
            run="pipeline.status:status",
            positional=("dir",),
        ),
        Verb(
            name="doctor",
            help="Check this machine: torch, CUDA, faiss, detectron2, Slurm, disk, data sets",
            config="pipeline.config:DoctorConfig",
            run="pipeline.doctor:doctor",
        ),
        Verb(
            name="data make digit-scenes",
            help="Draw the embedded data sets in the layouts of ImageNet, VOC, COCO and Cityscapes",
            config="siambench.data.digit_scenes:DigitScenesConfig",
            run="siambench.data.digit_scenes:make",
        ),
        Verb(
            name="data check",
            help="Check a data set as an evaluation would, and compare its counts with the official ones",
            config="pipeline.check:CheckConfig",
            run="pipeline.check:check",
            positional=("name", "data"),
        ),
    )
}
