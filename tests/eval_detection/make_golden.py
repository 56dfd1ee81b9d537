"""Write golden.safetensors: what the real detectron2 computes for the small networks of agreement.py.

Usage, with detectron2 installed from a clone: PYTHONPATH=. python tests/eval_detection/make_golden.py
"""

import json
import subprocess
from pathlib import Path

import torch
from agreement import GOLDEN, GOLDEN_SIZES, config_of, packed, their_model, theirs_of
from safetensors.torch import save_file

from siambench.backbone import sort_header

PATH = Path(__file__).parent / "golden.safetensors"


def main() -> None:
    import detectron2

    tensors, names = {}, {}
    for case, (arch, changes) in GOLDEN.items():
        config = config_of(**changes)
        model = their_model(arch, config)
        names[case] = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
        found = packed(theirs_of(model, config, GOLDEN_SIZES))
        tensors |= {f"{case}.{name}": tensor for name, tensor in found.items()}
    source = Path(detectron2.__file__).parent
    git = ["git", "-C", str(source), "rev-parse", "HEAD"]
    metadata = {
        "detectron2": detectron2.__version__,
        "commit": subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip(),
        "torch": torch.__version__,
        "names": json.dumps(names, separators=(",", ":")),
    }
    save_file(tensors, PATH, metadata=metadata)
    sort_header(PATH)
    print(f"{PATH}: {PATH.stat().st_size} bytes, detectron2 {metadata['commit']}")


if __name__ == "__main__":
    main()
