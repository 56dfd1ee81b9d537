"""Files of a repository on the Hugging Face Hub, through huggingface_hub: its cache, its login."""

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siambench.errors import UserError, first_line

TIMEOUT = 15.0  # seconds without an answer

_ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar")
_USUAL = ("model.safetensors", "pytorch_model.bin")  # what transformers and timm look for, in order

# What huggingface_hub raises when the Hub says no: what to do about it.
_REFUSALS = {
    "GatedRepoError": "is gated: ask for access at https://huggingface.co/{name}, then log in with "
    "`hf auth login` or set HF_TOKEN",
    "RepositoryNotFoundError": "is not on the Hugging Face Hub, or private: check the name, or log in "
    "with `hf auth login` or set HF_TOKEN",
    "RevisionNotFoundError": "has no such revision",
    "HFValidationError": "is no name of a repository",
}


@dataclass(frozen=True)
class Repository:
    """One commit of a repository on the Hugging Face Hub.

    Attributes:
        uri: what the user asked for, for messages.
        name: ``USER/REPO``.
        commit: its hash.
        files: paths of its files; when the Hub was not reached, of those in the cache.
        unreached: why the Hub was not reached; ``""`` when it was.
    """

    uri: str
    name: str
    commit: str
    files: list[str]
    unreached: str

    @property
    def notes(self) -> list[str]:
        """That the cache may be behind."""
        note = f"from the cache: the Hub was not reached ({self.unreached})"
        return [note] if self.unreached else []

    def weights(self, wanted: str) -> str:
        """The path of the file of weights: the one asked for, a usual one, or the only one."""
        for file in (wanted,) if wanted else _USUAL:
            if file in self.files:
                return file
        there = sorted(file for file in self.files if file.endswith(_ENDINGS))
        if len(there) == 1 and not wanted:
            return there[0]
        where = f"the cache; {self.unreached}" if self.unreached else f"commit {self.commit}"
        what = f"file {wanted}" if wanted else "one file of weights to take"
        shown = ", ".join(there[:10]) + (f" and {len(there) - 10} more" if len(there) > 10 else "")
        raise UserError(
            f"{self.uri}: no {what} in {self.name} ({where}); "
            + (f"name one with /FILE: {shown}" if there else "there are no weights in it")
        )

    def get(self, file: str) -> Path:
        """The file in the library's cache, downloaded if need be."""
        hub = library("huggingface_hub", self.uri)
        with _one_line(self.uri, self.name):
            return Path(
                hub.hf_hub_download(
                    self.name, file, revision=self.commit, local_files_only=bool(self.unreached)
                )
            )

    def settings(self, beside: str, name: str) -> dict[str, Any]:
        """A JSON file beside another, or else at the top; empty when there is none."""
        folder = beside.rpartition("/")[0]
        path = next((p for p in (f"{folder}/{name}", name) if p in self.files), None)
        if path is None:
            return {}
        try:
            loaded = json.loads(self.get(path).read_bytes())
            parts = [loaded] + [loaded.get(key) or {} for key in ("pretrained_cfg", "model_args")]
            if all(isinstance(part, dict) for part in parts):
                return loaded
            why = "not what libraries write"
        except (ValueError, AttributeError, RecursionError, OSError) as error:
            why = first_line(error)
        raise UserError(f"{self.uri}: {path} is damaged ({why}); name another commit or file")


def open_repository(uri: str, name: str, revision: str) -> Repository:
    """Ask the Hub once for the commit and its files; where it does not answer, ask the cache."""
    hub = library("huggingface_hub", uri)
    with _one_line(uri, name):
        try:
            info = hub.HfApi().model_info(name, revision=revision or None, timeout=TIMEOUT)
            files = [entry.rfilename for entry in info.siblings or ()]
            return Repository(uri, name, info.sha, files, "")
        except Exception as error:  # offline mode, or whatever its HTTP library raises
            if isinstance(error, tuple(getattr(hub.utils, kind) for kind in _REFUSALS)):
                raise
            unreached = first_line(error)
        try:
            folder = Path(
                hub.snapshot_download(
                    name, revision=revision or None, local_files_only=True, allow_patterns=[]
                )
            )
        except Exception:
            raise UserError(
                f"{uri}: the Hugging Face Hub was not reached ({unreached}) and {name} is not in the "
                "cache; check the connection, or fetch it where there is one"
            ) from None
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return Repository(uri, name, folder.name, files, unreached)


@contextmanager
def _one_line(uri: str, name: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line."""
    utils = library("huggingface_hub.utils", uri)
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever its HTTP library raises, a full disk, ...
        for kind, why in _REFUSALS.items():
            if isinstance(error, getattr(utils, kind)):
                raise UserError(f"{uri}: {name} {why.format(name=name)}") from None
        raise UserError(f"{uri}: {name} cannot be fetched ({first_line(error)})") from None


def library(name: str, uri: str) -> Any:
    """Import an optional library.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"{uri} needs {name.partition('.')[0]}, which is not installed: pip install timm huggingface_hub"
        ) from None
