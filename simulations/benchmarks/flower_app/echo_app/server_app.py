"""FedAvg without evaluation; writes the time at the end of each round, as lines of seconds, to the file `times`."""

import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    nodes = int(config["nodes"])
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes, min_evaluate_nodes=0)
    values = np.random.default_rng(0).standard_normal(int(config["parameters"])).astype(np.float32)
    times = Path(str(config["times"]))

    def note(_round: int, _arrays: ArrayRecord) -> MetricRecord | None:
        with times.open("a", encoding="utf-8") as file:
            file.write(f"{time.perf_counter()}\n")
        return None

    while len(list(grid.get_node_ids())) < nodes:  # the first round must not start with fewer
        time.sleep(0.2)
    strategy.start(grid, ArrayRecord({"weights": Array(values)}), int(config["rounds"]), evaluate_fn=note)
