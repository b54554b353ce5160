"""Several processes that train one model, as torchrun starts them; one process alone needs none of this.

    torchrun --nproc_per_node=2 train.py --dataroot datasets/dogs --name dogs

Their numbers come from torchrun's environment. Small things (figures, signals, states) travel over gloo on the CPU, so
that no GPU waits for them; gradients travel as one message after each backward pass.
"""
import os

import torch
import torch.distributed as dist


class Ranks:
    """Rank, world size, local rank; every method is collective."""

    def __init__(self, device=None):
        """device: of --device; cpu, mps = that; else each process takes the GPU of its own number."""
        torchrun = "RANK" in os.environ and "WORLD_SIZE" in os.environ and "MASTER_ADDR" in os.environ
        self.rank, self.count, self.local = (
            int(os.environ[k]) if torchrun else default
            for k, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
        self.started = self.count > 1 and not dist.is_initialized()
        if self.started:
            on_gpu = device not in ("cpu", "mps") and torch.cuda.is_available()
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

    def average_gradients(self, parameters):
        """Make each gradient its mean over the processes, in one message. Where there is none, as in all processes of a
        step that asks nothing of a network, there stays none: with zeros Adam would count the step."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for old, new in zip(gradients, flat.div_(self.count).split([g.numel() for g in gradients]), strict=True):
            old.copy_(new.view_as(old))

    def close(self):
        if self.started:
            dist.destroy_process_group()
