"""The rollouts that still ask for something of a device. The others stay in the store until somebody asks for one."""

from collections.abc import Iterator

from coordinator.releases.ports import ReleaseStore
from coordinator.releases.release import Rollout
from coordinator.releases.states import UNWANTED
from shared.errors import NotFound
from shared.ids import RolloutId


class Standing:
    """What the store holds, as one process that alone writes it remembers it. Not safe to call from several threads at once."""

    def __init__(self, store: ReleaseStore) -> None:
        self._store = store
        self._rollouts = {rollout.id: rollout for rollout in store.standing()}

    def __iter__(self) -> Iterator[Rollout]:
        return iter(tuple(self._rollouts.values()))

    def __len__(self) -> int:
        return len(self._rollouts)

    def find(self, rollout: RolloutId) -> Rollout | None:
        """Also one that has ended: it may still hear from a device."""
        known = self._rollouts.get(rollout)
        if known is None:
            try:
                return self._store.rollout(rollout)
            except NotFound:
                return None
        return known

    def keep(self, rollout: Rollout) -> None:
        """It was created or changed: remember it, or let go of it and of what it has taken the place of."""
        self._rollouts[rollout.id] = rollout
        current = self.current(rollout.model)
        if current is None and (current := self._store.wanted(rollout.model)) is not None:
            self._rollouts[current.id] = current  # the one before says again what devices should run
        for other in self:
            if other.model == rollout.model and not other.stands and other is not current:
                del self._rollouts[other.id]

    def current(self, model: str) -> Rollout | None:
        """The model's newest rollout that was neither refused nor undone: the one that says what devices should run."""
        wanted = [one for one in self._rollouts.values() if one.model == model and one.state not in UNWANTED]
        return max(wanted, key=lambda one: (one.created_at, one.id), default=None)

    def is_current(self, rollout: Rollout) -> bool:
        current = self.current(rollout.model)
        return current is not None and current.id == rollout.id
