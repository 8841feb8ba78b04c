"""What training is set to. No torch here: who only checks a job's values reads it too."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainSettings:
    """`proximal_mu` pulls towards the state that training started from (FedProx, Li et al. 2020). With a `label_set`,
    answers outside it are left out of the loss, so a device does not unlearn classes it has none of.
    """

    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    epochs: int = 1
    batch_size: int = 32
    proximal_mu: float = 0.0
    replay_share: float = 0.5  # of each batch, on top of it, from the replay buffer if there is one
    label_set: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.lr <= 10:
            raise ValueError("lr is positive, at most 10")
        if not 0 <= self.momentum < 1 or not 0 <= self.weight_decay <= 1:
            raise ValueError("momentum is below 1 and weight_decay at most 1, neither is negative")
        if not 1 <= self.epochs <= 1000 or not 2 <= self.batch_size <= 4096:
            raise ValueError("epochs is 1 to 1000, batch_size 2 to 4096")
        if not 0 <= self.proximal_mu < 1e6 or not 0 <= self.replay_share <= 4:
            raise ValueError("proximal_mu and replay_share are not negative; replay_share at most 4")
