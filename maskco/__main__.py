"""`python -m maskco` is the command `maskco`; `torchrun -m maskco pretrain …` starts one on each device."""

from maskco.cli import main

if __name__ == "__main__":
    main()
