"""Two processes take one step together; used by test_loop.py.

    torchrun --nproc-per-node 2 ranks.py OUT

Each rank has half of the micro-batches; rank 0 writes what the step came to.
"""

import json
import sys
from pathlib import Path

import torch
from steps import learner, micro_batches
from torch.nn.parallel import DistributedDataParallel

from luthier.train.loop import train_step


def main(out: Path) -> None:
    torch.distributed.init_process_group("gloo")
    rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
    mine = learner()
    model = mine.model
    mine.model = DistributedDataParallel(model)
    mine.ranks = count
    results = [train_step(mine, micro_batches(seed)[rank::count]) for seed in (1, 2)]
    if rank == 0:
        weights = {name: p.detach().double().sum().item() for name, p in model.named_parameters()}
        steps = [[r.loss, r.grad_norm, r.parts] for r in results]
        out.write_text(json.dumps({"steps": steps, "weights": weights}))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
