"""The whole run: read a run file, do what is not done yet, report; and the ``siambench`` command."""

from siambench.config import Verb

VERBS = {
    "run": Verb(
        name="run",
        help="Do all of a run file that is not done yet, and report",
        config="pipeline.config:RunConfig",
        run="pipeline.run:run",
        positional=("file",),
    ),
    "data make digit-scenes": Verb(
        name="data make digit-scenes",
        help="Draw the embedded data sets in the layouts of ImageNet, VOC, COCO and Cityscapes",
        config="siambench.data.digit_scenes:DigitScenesConfig",
        run="siambench.data.digit_scenes:make",
    ),
    "data check": Verb(
        name="data check",
        help="Check a data set as an evaluation would, and compare its counts with the official ones",
        config="pipeline.check:CheckConfig",
        run="pipeline.check:check",
    ),
}
