"""The command `maskco`, also as `python -m maskco`. `torchrun -m maskco pretrain …` starts one on each device.

`pip install --no-deps maskco` brings the ops and `maskco.nn` to any torch. The commands need more packages.
"""

from __future__ import annotations

import importlib.util
import sys

PACKAGES = [  # what `pip install maskco` brings
    "torch",
    "torchvision",
    "timm",
    "safetensors",
    "huggingface_hub",
    "msgspec",
    "numpy",
    "pillow",
    "filelock",
    "tqdm",
    "tyro",
    "tensorboard",
    "matplotlib",
]
MODULES = {"pillow": "PIL"}  # where the name to import is another


def main() -> None:
    """Runs `maskco.cli.main`. If it needs a package that is not installed, ends with 2 after one line on stderr."""
    try:
        from maskco.cli import main as run

        run()
    except ModuleNotFoundError as error:
        name = (error.name or "maskco").partition(".")[0]
        if name == "maskco":
            raise
        missing = [each for each in PACKAGES if importlib.util.find_spec(MODULES.get(each, each)) is None]
        if name not in (MODULES.get(each, each) for each in missing):  # it is what one of them needs
            missing.append(name)
        print(f"error: the command line needs {', '.join(missing)}. Run pip install maskco", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
