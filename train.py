"""Train a Monet language model.

    python train.py fit --config configs/demo.yaml --run_dir runs/demo
    python train.py fit --help                                    every setting, its unit and default
    python train.py fit --config configs/demo.yaml --run_dir runs/demo --print_config
    python train.py fit --config configs/demo.yaml --run_dir runs/wide --model.shape.hidden_size 256
    python train.py validate --run runs/demo --data data/demo     a checkpoint's validation loss on prepared data

The same command continues a run that was interrupted. docs/training.md describes the run folder.
"""

import sys

if __name__ == "__main__":
    from monet.training.cli import main

    sys.exit(main())
