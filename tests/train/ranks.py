"""Processes that take steps together; used by test_loop.py.

    python ranks.py RANK COUNT FOLDER

Each rank has its share of the micro-batches; rank 0 writes what the steps came to into FOLDER.
"""

import json
import os
import sys
from pathlib import Path

import torch
from steps import learner, micro_batches
from torch.nn.parallel import DistributedDataParallel

from luthier.train.loop import train_step


def main(rank: int, count: int, folder: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=count
    )
    mine = learner()
    model = mine.model
    mine.model = DistributedDataParallel(model)
    mine.ranks = count
    results = [train_step(mine, micro_batches(seed)[rank::count]) for seed in (1, 2)]
    if rank == 0:
        weights = {name: p.detach().double().sum().item() for name, p in model.named_parameters()}
        steps = [[r.loss, r.grad_norm, r.parts] for r in results]
        (folder / "out.json").write_text(json.dumps({"steps": steps, "weights": weights}))
    torch.distributed.barrier()
    # Taking a gloo group down may hang once the other rank has gone.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
