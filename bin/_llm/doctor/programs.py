"""Small programs that llm-doctor runs by Python in the image, beside inside.py."""

from __future__ import annotations

# `python -c` puts the working directory first on the path: a file of the user's named json.py or
# torch.py would count.
RUN = """import sys
sys.path[:] = [folder for folder in sys.path if folder]
exec(compile(sys.argv.pop(1), "llm-doctor", "exec"))
"""

# One rank of a collective: backend, URL of the rendezvous, world size, rank, device, seconds.
COLLECTIVE = """
import datetime, sys, time, torch
import torch.distributed as dist
backend, url, world, rank, device, seconds = sys.argv[1:]
world, rank = int(world), int(rank)
if backend == "nccl":
    torch.cuda.set_device(int(device))
where = "cuda" if backend == "nccl" else "cpu"
dist.init_process_group(backend, init_method=url, world_size=world, rank=rank,
                        timeout=datetime.timedelta(seconds=float(seconds)))
data = torch.full((4 << 20,), float(rank + 1), device=where)
dist.all_reduce(data)
assert data.min() == data.max() == world * (world + 1) / 2, "the sum is wrong"
wait = torch.cuda.synchronize if backend == "nccl" else dist.barrier
times = []
for _ in range(3):
    wait()
    start = time.perf_counter()
    dist.all_reduce(data)
    wait()
    times.append(time.perf_counter() - start)
print("llm-doctor: all-reduce of %d bytes took %.6f s" % (data.numel() * 4, min(times)))
sys.stdout.flush()
dist.destroy_process_group()
"""
