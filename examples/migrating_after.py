"""The training of `migrating_before.py` in its native form: bounds, a safe point, an optimizer that keeps its momentum.

While it runs, type in another terminal:

    ltctl set migrating-after lr=0.5 --reason "it hardly moves"
    ltctl trigger migrating-after stop
"""

import argparse
import time

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import livetune
from livetune.torch import bind

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--seconds", type=float, default=40, help="how long to train (%(default)s)")
options = parser.parse_args()

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)

job = livetune.init("migrating-after")
lr = job.variable("lr", 0.0001, min=1e-6, max=1.0, scale="log", doc="Learning rate.")
stop = job.trigger("stop", doc="End the training.")

model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=lr.value, momentum=0.5)
bind(optimizer, lr=lr)  # a new lr is written into the optimizer, which goes on as it was

end = time.monotonic() + options.seconds
while time.monotonic() < end and not stop():
    batch = torch.randint(len(x), (64,))
    loss = functional.cross_entropy(model(x[batch]), y[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    job.step()  # the safe point: changes take effect here, all at once
    if lr.changed():
        print(f"step {job.current_step}: lr is now {lr.value:g}")
    if job.current_step % 500 == 0:
        print(f"step {job.current_step}: loss {loss.item():.3f}")
print(f"ended at step {job.current_step}")
job.finish()
