"""Several processes that train one model, as torchrun starts them; one process alone needs none of this.

    torchrun --nproc_per_node=2 train.py --dataroot datasets/dogs --name dogs

The processes' numbers come from torchrun's environment. Small things (figures, signals, states) travel over gloo on the
CPU, so that no GPU waits for them; gradients travel as DistributedDataParallel sends them.
"""
import os
import sys

import torch
import torch.distributed as dist


class Ranks:
    """This process among its like: `rank` of `count`, `local` on its machine. All methods are called by all."""

    def __init__(self, gpu=None):
        """gpu: -1 = the CPU; else each process takes the GPU of its own number."""
        torchrun = "RANK" in os.environ and "WORLD_SIZE" in os.environ and "MASTER_ADDR" in os.environ
        self.rank, self.count, self.local = (
            int(os.environ[k]) if torchrun else default
            for k, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
        self.started = self.count > 1 and not dist.is_initialized()
        if self.started:
            on_gpu = gpu != -1 and torch.cuda.is_available()
            if on_gpu:
                torch.cuda.set_device(self.local)
            dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")

    def reduce(self, values, op="sum"):
        """Sum or maximum over all processes of a list of numbers."""
        if self.count == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, dist.ReduceOp.SUM if op == "sum" else dist.ReduceOp.MAX)
        return tensor.tolist()

    def gather(self, item):
        """The list of every process's `item`, for all."""
        if self.count == 1:
            return [item]
        items = [None] * self.count
        dist.all_gather_object(items, item)
        return items

    def wrap(self, module, may_skip=False):
        """`module` so that its gradients are averaged over the processes. It must use all parameters that require
        gradients now, unless it `may_skip` some; those that require none are left alone for good."""
        if self.count == 1:
            return module
        device = next(module.parameters()).device
        return torch.nn.parallel.DistributedDataParallel(
            module, device_ids=None if device.type == "cpu" else [device], find_unused_parameters=may_skip,
            gradient_as_bucket_view=True)

    def close(self):
        if self.started:
            dist.destroy_process_group()


def leave(code):
    """End this process with `code`.

    Where it was one of several, without the interpreter's own end: DistributedDataParallel keeps gloo's threads alive
    beyond `Ranks.close`, and one that then lets go of a tensor aborts the process (SIGABRT, after all is done).
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:  # of torchrun
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
