"""Methods: one file each, found by its name. A method builds its modules and turns views into a loss."""

import difflib
import inspect
import pkgutil
from functools import cache
from importlib import import_module

from pretrain.config import PretrainConfig, check_config
from pretrain.methods.method import Method, check_uses, read_options
from siambench.errors import UserError


@cache
def methods() -> dict[str, type[Method]]:
    """Every method by its file's name, which is what ``--method`` takes."""
    found = {}
    for file in pkgutil.iter_modules(__path__):
        module = import_module(f"{__name__}.{file.name}")
        for _, member in inspect.getmembers(module, inspect.isclass):
            own = member.__module__ == module.__name__ and member is not Method
            if own and issubclass(member, Method):
                found[file.name] = member
    return found


def method_class(config: PretrainConfig) -> type[Method]:
    """The method that ``config`` names.

    Raises:
        UserError: there is none, or it would not read a setting that is given.
    """
    known = methods()
    if config.method not in known:
        near = difflib.get_close_matches(config.method, known, 1)
        meant = f"is {near[0]} meant? " if near else ""
        raise UserError(
            f"--method: there is no {config.method!r}; {meant}There are: {', '.join(known)}"
        )
    check_uses(known[config.method], config)
    return known[config.method]


def check(config: PretrainConfig) -> None:
    """Refuse settings that cannot be meant, the method's own among them.

    Raises:
        UserError: names the first that is wrong.
    """
    check_config(config)
    read_options(method_class(config), config)


def build_method(config: PretrainConfig, classes: int, images: int) -> Method:
    """The method of ``config``, randomly initialised, for so many classes and training images."""
    return method_class(config)(config, classes, images)
