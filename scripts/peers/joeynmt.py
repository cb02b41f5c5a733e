"""JoeyNMT as a driver: its training manager's own step, and its own search.

python -m peers.joeynmt WORK THREADS PRECISION    (with the Python of its environment)
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from peers.protocol import Decoded, Launch, System, serve
from peers.torch_model import counted, counting_rows, load_parameters, save_parameters
from peers.work import EOS, PAD, SOS, UNK, Work

if TYPE_CHECKING:
    from collections.abc import Sequence


class JoeyNmt(System):
    """JoeyNMT: `joeynmt.training.TrainManager._train_step` and `joeynmt.search.search`."""

    def __init__(self) -> None:
        import joeynmt.builders
        import joeynmt.model
        import joeynmt.search
        import joeynmt.training
        import joeynmt.vocabulary  # noqa: F401

    def build(self, work: Work, launch: Launch) -> None:
        """Model, loss, clipping and optimizer by its own builders."""
        import torch
        from joeynmt.builders import build_gradient_clipper, build_optimizer
        from joeynmt.model import build_model
        from joeynmt.vocabulary import Vocabulary

        torch.manual_seed(work.settings.seed)
        names = {"unk": UNK, "pad": PAD, "bos": SOS, "eos": EOS}
        specials = {f"{name}_token": token for name, token in names.items()}
        numbers = {f"{name}_id": number for number, name in enumerate(names)}
        special = SimpleNamespace(**specials, **numbers, sep_token=None, sep_id=None, lang_tags=[])
        self._vocabulary = Vocabulary([token for token in work.vocabulary if token not in names.values()], special)
        if len(self._vocabulary) != len(work.vocabulary) + 1:
            raise ValueError(f"JoeyNMT has {len(self._vocabulary)} rows for {len(work.vocabulary)} tokens and padding")
        self._model = build_model(_model_options(work), self._vocabulary, self._vocabulary)
        self._model.loss_function = ("crossentropy", 0.0)
        clip = {"clip_grad_val": None, "clip_grad_norm": work.settings.clip_norm}
        self._clip: Any = build_gradient_clipper(clip)
        adam = {"optimizer": "adam", "learning_rate": work.settings.learning_rate, "adam_betas": (0.9, 0.999)}
        self._optimizer = build_optimizer(adam, self._model.parameters())
        self._autocast = {"device_type": "cpu", "enabled": launch.precision == "bf16", "dtype": torch.bfloat16}
        # What the manager's step reads of the manager, whose constructor wants files and a validation set.
        self._manager: Any = SimpleNamespace(
            model=self._model,
            args=SimpleNamespace(normalization="tokens", batch_multiplier=1),
            autocast=self._autocast,
            n_gpu=0,
            scaler=None,
        )
        self._work = work

    def parameters(self) -> dict[str, int]:
        """Parameters by module, two levels deep; a shared table counts once."""
        return counted(self._model)

    def batch(self, step: int) -> Any:
        """JoeyNMT's own batch object."""
        pairs = self._work.pairs(step)
        return self._batch([source for source, _ in pairs], [target for _, target in pairs])

    def train(self, batch: Any) -> tuple[float, int]:
        """The manager's step (it sorts the batch, too), and what its loop does behind it."""
        from joeynmt.training import TrainManager

        loss, _ = TrainManager._train_step(self._manager, batch)
        self._clip(parameters=self._model.parameters())
        self._optimizer.step()
        self._model.zero_grad()
        return loss * batch.ntokens, batch.ntokens

    def rules(self, beam: int) -> list[str]:
        """A beam goes on until each of its places has ended once; a beam of one is its greedy search."""
        return ["all ended"] if beam > 1 else ["top ended"]

    def decode(self, beam: int, batch_size: int, rule: str) -> Decoded:
        """Batches of sentences of like length, longest first, through `search`."""
        from joeynmt.search import search

        sentences = [line.split(" ") for line in self._work.test]
        order = sorted(range(len(sentences)), key=lambda number: -len(sentences[number]))
        outputs: list[list[str]] = [[] for _ in sentences]
        self._model.eval()
        with counting_rows(self._model.decoder, "_forward_step", "prev_embed") as rows:
            for start in range(0, len(order), batch_size):
                numbers = order[start : start + batch_size]
                found, _, _ = search(
                    model=self._model,
                    batch=self._batch([sentences[number] for number in numbers], None),
                    max_output_length=self._work.settings.max_length,
                    beam_size=beam,
                    beam_alpha=-1.0,
                    n_best=1,
                    min_output_length=0,
                    autocast=self._autocast,
                )
                for number, tokens in zip(numbers, self._vocabulary.arrays_to_sentences(found), strict=True):
                    outputs[number] = [token for token in tokens if token != EOS]
        return Decoded(outputs, rows[0])

    def save(self, path: Path) -> None:
        """Write the model's parameters."""
        save_parameters(self._model, path)

    def load(self, path: Path) -> None:
        """Take up what `save` wrote."""
        load_parameters(self._model, path)

    def versions(self) -> dict[str, str]:
        """Of JoeyNMT and of torch."""
        from importlib.metadata import version

        import torch

        return {"JoeyNMT": version("joeynmt"), "torch": torch.__version__}

    def _batch(self, source: Sequence[list[str]], target: Sequence[list[str]] | None) -> Any:
        import torch
        from joeynmt.batch import Batch

        sources, lengths = self._padded([[*sentence, EOS] for sentence in source])
        targets = None if target is None else self._padded([[SOS, *sentence, EOS] for sentence in target])[0]
        return Batch(
            src=sources,
            src_length=lengths,
            src_prompt_mask=None,
            trg=targets,
            trg_prompt_mask=None,
            indices=torch.arange(len(sources)),
            device=torch.device("cpu"),
            pad_index=self._vocabulary.pad_index,
            eos_index=self._vocabulary.eos_index,
            is_train=target is not None,
        )

    def _padded(self, sentences: Sequence[list[str]]) -> tuple[Any, Any]:
        """[batch, time] token numbers and [batch] lengths."""
        import torch

        lookup = self._vocabulary.lookup
        lengths = torch.tensor([len(sentence) for sentence in sentences])
        rows = torch.full((len(sentences), int(lengths.max())), self._vocabulary.pad_index)
        for row, sentence in zip(rows, sentences, strict=True):
            row[: len(sentence)] = torch.tensor([lookup(token) for token in sentence])
        return rows, lengths


def _model_options(work: Work) -> dict[str, Any]:
    """The `model` section of a JoeyNMT configuration."""
    settings = work.settings
    side = {
        "type": "recurrent",
        "rnn_type": "gru",
        "num_layers": settings.layers,
        "dropout": settings.dropout,
        "embeddings": {"embedding_dim": settings.units, "scale": False, "dropout": settings.dropout},
    }
    decoder = {
        "hidden_size": settings.units,
        "attention": "luong",
        "input_feeding": True,
        "hidden_dropout": settings.dropout,
        "init_hidden": "last",
    }
    start = {
        f"{what}{name}": value
        for what in ("", "embed_", "bias_")
        for name, value in (("initializer", "uniform"), ("init_weight", settings.start))
    }
    return {
        **start,
        "tied_embeddings": settings.tied,
        "tied_softmax": settings.tied,
        "encoder": {**side, "hidden_size": settings.units // 2, "bidirectional": True},
        "decoder": {**side, **decoder},
    }


if __name__ == "__main__":
    serve(JoeyNmt, sys.argv[1:])
