"""What a round of Flower's SecAgg+ would cost, from rounds that were measured: a fit to the terms that its cost is made of."""

from collections.abc import Callable, Mapping

import numpy as np

from simulations.benchmarks.flower_secagg import neighbours

Key = tuple[int, int, float]  # clients, elements, the share that drops out


def _server(clients: int, elements: int, dropout: float) -> list[float]:
    """Shares to combine, whose cost grows with the square of their number; masks to expand; vectors to add."""
    near = neighbours(clients)
    masks = clients * (1 - dropout) * (1 + dropout * near)
    return [clients * near**2, masks, masks * elements, clients * elements]


def _client(clients: int, elements: int, _dropout: float) -> list[float]:
    near = neighbours(clients)
    return [1.0, float(near**2), float(near * elements), float(elements)]


def _bytes(clients: int, elements: int, _dropout: float) -> list[float]:
    return [float(neighbours(clients)), float(elements)]


def _memory(clients: int, elements: int, _dropout: float) -> list[float]:
    return [1.0, float(clients * elements)]


TERMS: Mapping[str, Callable[[int, int, float], list[float]]] = {
    "client": _client,
    "server": _server,
    "bytes": _bytes,
    "memory": _memory,
}


def guess(known: Mapping[Key, Mapping[str, float]], case: Key, what: str) -> float:
    """Least squares of relative errors, no term negative; 0 while there are fewer cases than terms."""
    from scipy.optimize import nnls

    terms = TERMS[what]
    rows = np.array([terms(*one) for one in known])
    if len(known) < len(terms(*case)):
        return 0.0
    values = np.array([costs[what] for costs in known.values()])
    scaled = rows / values[:, None]
    size = np.abs(scaled).max(axis=0)
    weights, _ = nnls(scaled / size, np.ones(len(values)))
    return float(np.array(terms(*case)) / size @ weights)
