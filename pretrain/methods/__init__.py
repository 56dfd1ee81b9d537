"""Methods: one file each. A method builds its modules and turns views into a loss."""

from pretrain.config import PretrainConfig
from pretrain.methods.simsiam import SimSiam
from pretrain.methods.supervised import Supervised

Method = SimSiam | Supervised
METHODS: dict[str, type[SimSiam] | type[Supervised]] = {
    "simsiam": SimSiam,
    "supervised": Supervised,
}


def build_method(config: PretrainConfig, classes: int) -> Method:
    """The method that ``config`` names, randomly initialised."""
    return METHODS[config.method](config, classes)
