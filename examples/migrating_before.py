"""A script as it was written for LiveTune: it runs with another import, and nothing else is changed.

While it runs, type in another terminal:

    ltctl set migrating-before lr=0.5 --reason "it hardly moves"
    ltctl trigger migrating-before stop

`migrating_after.py` is the same training in its native form; docs/migrating.md leads from one to the other.
"""

import argparse
import time

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from livetune.compat import liveTrigger, liveVar  # was: from LiveTune import liveTrigger, liveVar

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--seconds", type=float, default=40, help="how long to train (%(default)s)")
options = parser.parse_args()

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)

lr = liveVar(0.0001, "lr")
stop = liveTrigger("stop")

model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=lr(), momentum=0.5)

step = 0
end = time.monotonic() + options.seconds
while time.monotonic() < end and not stop():
    if lr.changed():
        rate = lr()
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.5)  # forgets its momentum
        print(f"step {step}: lr is now {rate:g}")
    batch = torch.randint(len(x), (64,))
    loss = functional.cross_entropy(model(x[batch]), y[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    step += 1
    if step % 500 == 0:
        print(f"step {step}: loss {loss.item():.3f}")
print(f"ended at step {step}")
