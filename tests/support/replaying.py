"""A deterministic training for tests: a network, AdamW, live lr and weight decay, a trigger that reaches into the weights.

Arguments: the job's name, and the file that its weights go to. It trains until "stop" is fired, and tells its step now and then.
What is recorded and replayed is said by the environment, as for any program.
"""

from __future__ import annotations

import json
import os
import sys
import time

import torch

import livetune
from livetune.torch import bind

torch.set_num_threads(1)
torch.manual_seed(7)
torch.use_deterministic_algorithms(True)
job = livetune.init(sys.argv[1])
lr = job.variable("lr", 1e-3, min=0.0, max=1.0)
wd = job.variable("optim.wd", 0.0)
noise = job.variable("noise", 1)
shake, stop = job.trigger("shake"), job.trigger("stop")
x = torch.randn(128, 16)
y = x.square().sum(1, keepdim=True)
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=lr.value, weight_decay=wd.value)
bind(optimizer, lr=lr, weight_decay=wd)
live = "LIVETUNE_REPLAY" not in os.environ
while not stop():
    batch = torch.randint(0, 128, (16,))
    loss = (model(x[batch]) - y[batch]).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    job.step()
    if job.current_step % 5 == 0 and shake():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.01 * noise.value)
    if job.current_step % 20 == 0:
        sys.stdout.write(json.dumps({"step": job.current_step, "connected": job.connected}) + "\n")
        sys.stdout.flush()
    if live:
        time.sleep(0.001)  # so that a change from outside takes few steps
torch.save({"step": job.current_step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, sys.argv[2])
job.finish()
