"""Reward weights that are changed while an agent learns (actor-critic on a tiny grid): watch it change its way.

The agent walks from S to G. Straight on is short, but through mud (~); the way around is two moves longer. At first mud
costs nothing. While it runs, type in another terminal, and give the agent some seconds after each:

    ltctl set reward-weights reward.mud=0.5 --reason "keep the robot clean"
    ltctl undo reward-weights
    ltctl trigger reward-weights run.stop
"""

import argparse
import time

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

import livetune

GRID = ("S~~~G", ".....")
HEIGHT, WIDTH = len(GRID), len(GRID[0])
TILES = "".join(GRID)
START, GOAL = TILES.index("S"), TILES.index("G")
IS_MUD = torch.tensor([tile == "~" for tile in TILES])
MOVES = torch.tensor([(0, 1), (0, -1), (1, 0), (-1, 0)])
"""Rows and columns of the four actions, which ARROWS draws."""
ARROWS = ">", "<", "v", "^"
MAX_MOVES = 20
EPISODES = 32


def move(places: Tensor, actions: Tensor) -> Tensor:
    """Return where the agents are after their moves; walls hold them back."""
    rows, columns = places // WIDTH + MOVES[actions, 0], places % WIDTH + MOVES[actions, 1]
    return rows.clamp(0, HEIGHT - 1) * WIDTH + columns.clamp(0, WIDTH - 1)


def play(logits: Tensor) -> list[Tensor]:
    """Play episodes side by side.

    Returns:
        Places, actions, places reached, and whether the agent was under way; each of shape (moves, episodes).
    """
    history = []
    places, under_way = torch.full((EPISODES,), START), torch.ones(EPISODES, dtype=torch.bool)
    while len(history) < MAX_MOVES and under_way.any():
        actions = Categorical(logits=logits[places]).sample()
        reached = move(places, actions)
        history.append((places, actions, reached, under_way))
        places, under_way = reached, under_way & (reached != GOAL)
    return [torch.stack(column) for column in zip(*history, strict=True)]


def draw(logits: Tensor) -> str:
    """Draw the way that the agent takes if it always does what it likes best."""
    tiles, place = list(TILES), START
    while place != GOAL and tiles[place] not in ARROWS:  # nor in circles
        action = logits[place].argmax()
        tiles[place] = ARROWS[int(action)]
        place = int(move(torch.tensor(place), action))
    return " / ".join("".join(tiles[start : start + WIDTH]) for start in range(0, len(tiles), WIDTH))


def main() -> None:
    """Learn until the time is over or somebody says stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="how long to learn (%(default)s)")
    options = parser.parse_args()

    with livetune.init("reward-weights") as job:
        goal = job.variable("reward.goal", 1.0, min=0.0, max=10.0, doc="Reward for arriving.")
        effort = job.variable("reward.move", 0.1, min=0.0, max=1.0, doc="What every move costs.")
        mud = job.variable("reward.mud", 0.0, min=0.0, max=1.0, doc="What a move into mud costs in addition.")
        entropy = job.variable("entropy", 0.1, min=0.0, max=1.0, doc="How much the agent tries.")
        control = livetune.RunControl(job)

        logits = nn.Parameter(torch.zeros(len(TILES), len(ARROWS)))  # the actor
        values = nn.Parameter(torch.zeros(len(TILES)))  # the critic
        optimizer = torch.optim.Adam([logits, values], lr=0.05)

        end = time.monotonic() + options.seconds
        while time.monotonic() < end and control.proceed():
            with torch.no_grad():
                places, actions, reached, under_way = play(logits)
            rewards = goal.value * (reached == GOAL) - effort.value - mud.value * IS_MUD[reached]
            returns = (rewards * under_way).flip(0).cumsum(0).flip(0)
            policy = Categorical(logits=logits[places])
            advantages = returns - values[places]
            losses = (
                advantages.square() - advantages.detach() * policy.log_prob(actions) - entropy.value * policy.entropy()
            )
            optimizer.zero_grad()
            losses[under_way].mean().backward()
            optimizer.step()
            job.step()  # the safe point: an episode is judged by one set of weights

            moves = under_way.sum() / EPISODES
            muddy = (under_way & IS_MUD[reached]).sum() / EPISODES
            job.log(moves=moves, muddy_moves=muddy)
            if mud.changed():
                print(f"step {job.current_step}: mud now costs {mud.value:g}")
            if job.current_step % 200 == 0:
                print(f"step {job.current_step}: {moves:.1f} moves, {muddy:.1f} of them into mud    {draw(logits)}")
        print(f"ended at step {job.current_step}")


if __name__ == "__main__":
    main()
