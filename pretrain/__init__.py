"""Pre-training: a method, its views, one loop, and monitors. Makes checkpoints for convert/."""

from siambench.config import Verb

VERBS = {
    "pretrain": Verb(
        name="pretrain",
        help="Pre-train a ResNet on a folder of images (SimSiam, its relatives, or with labels)",
        config="pretrain.config:PretrainConfig",
        run="pretrain.loop:run",
        presets="pretrain:presets",
        check="pretrain.methods:check",
    )
}
