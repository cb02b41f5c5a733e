"""Our own system as a driver: the strategy's step that `nmt train` runs, and the search that `nmt translate` runs.

python -m peers.ours WORK THREADS PRECISION
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peers.protocol import Decoded, Launch, System, serve
from peers.work import Work

if TYPE_CHECKING:
    from nmt.config.schema import SearchConfig

# The nearest that we have to what ends a search in the peers; docs/peers.md says how near.
RULES = {"top ended": {"finishing": "standard", "stop": "bound"}, "all ended": {"finishing": "google", "stop": "all"}}


class Ours(System):
    """This repository's toolkit."""

    def __init__(self) -> None:
        import nmt.config
        import nmt.evaluation.decode
        import nmt.training.workload  # noqa: F401

    def build(self, work: Work, launch: Launch) -> None:
        """Model and optimizer of the configuration that `work` names; its corpus is prepared already."""
        from distributed.single import SingleStrategy
        from nmt.config import compose
        from nmt.training.workload import workload_spec

        self._config = compose([*work.settings.overrides, f"training.precision={launch.precision}"])
        self._strategy = SingleStrategy()
        self._strategy.start(workload_spec(self._config, "cpu"))
        self._work = work

    def parameters(self) -> dict[str, int]:
        """Parameters by module, two levels deep."""
        from nmt.models.parameters import parameters_by_module

        return parameters_by_module(self._strategy.model)

    def batch(self, step: int) -> int:
        """The step's number: sampling and collating are part of our step, and timed with it."""
        return step

    def train(self, batch: int) -> tuple[float, int]:
        """The whole step of the strategy."""
        done = self._strategy.step(batch)
        return done.loss * done.target_tokens, done.target_tokens

    def rules(self, beam: int) -> list[str]:
        """Both, where they differ."""
        return list(RULES) if beam > 1 else ["top ended"]

    def decode(self, beam: int, batch_size: int, rule: str) -> Decoded:
        """By `nmt.evaluation.decode`, as the model was trained: under autocast or not."""
        from nmt.data.vocabulary import EOS, SOS
        from nmt.evaluation.decode import decode
        from nmt.search.statistics import SearchStatistics
        from nmt.training.workload import precision_context

        prepared = self._strategy.workload.prepared
        sentences = [prepared.test.source[number] for number in range(len(self._work.test))]
        search = self._search(beam, batch_size, rule)
        statistics = SearchStatistics()
        precision = precision_context(self._config, "cpu")
        with self._strategy.evaluation_model() as model, precision:
            found = decode(model, sentences, search, statistics=statistics)
        token = prepared.target_tokenizer.token
        outputs = [[token(number) for number in best[0].tokens if number not in (SOS, EOS)] for best in found]
        return Decoded(outputs, statistics.computed)

    def save(self, path: Path) -> None:
        """Write the strategy's state."""
        import torch

        torch.save(self._strategy.state(), path)

    def load(self, path: Path) -> None:
        """Take up what `save` wrote."""
        import torch

        self._strategy.load_state(torch.load(path, weights_only=True))

    def versions(self) -> dict[str, str]:
        """Of this package and of torch."""
        import torch

        import nmt

        return {"nmt": nmt.__version__, "torch": torch.__version__}

    def _search(self, beam: int, batch_size: int, rule: str) -> SearchConfig:
        chosen: dict[str, Any] = {"beam": beam, "batch_size": batch_size, "max_length": self._work.settings.max_length}
        return dataclasses.replace(self._config.search, n_best=1, penalty="none", **chosen, **RULES[rule])


if __name__ == "__main__":
    serve(Ours, sys.argv[1:])
