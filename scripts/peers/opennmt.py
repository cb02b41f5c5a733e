"""OpenNMT-py as a driver: its trainer's own step, and its translator's own search.

python -m peers.opennmt WORK THREADS PRECISION    (with the Python of its environment)
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peers.protocol import Decoded, Launch, System, serve
from peers.torch_model import counted, counting_rows, load_parameters, save_parameters
from peers.work import EOS, PAD, SOS, UNK, Work

if TYPE_CHECKING:
    from collections.abc import Sequence

GREEDY = "top ended, greedy search"


class OpenNmt(System):
    """OpenNMT-py: `onmt.trainer.Trainer` and `onmt.translate.translator.Translator`."""

    def __init__(self) -> None:
        import onmt.inputters.inputter
        import onmt.model_builder
        import onmt.opts
        import onmt.trainer
        import onmt.translate.translator  # noqa: F401

    def build(self, work: Work, launch: Launch) -> None:
        """Model, loss and optimizer as `onmt_train` makes them of its options."""
        import torch
        from onmt.inputters.inputter import dict_to_vocabs
        from onmt.model_builder import build_model
        from onmt.trainer import build_trainer
        from onmt.utils.optimizers import Optimizer

        torch.manual_seed(work.settings.seed)
        tokens = [*work.vocabulary, PAD]
        words = {"src": tokens, "tgt": tokens, "data_task": "seq2seq", "decoder_start_token": SOS}
        self._vocabularies = dict_to_vocabs(words)
        vocabulary = self._vocabularies["src"]
        vocabulary.default_id = vocabulary[UNK]
        if [vocabulary[token] for token in tokens] != list(range(len(tokens))):
            raise ValueError("OpenNMT-py numbers the vocabulary otherwise")
        options = _options(work)
        self._model = build_model(options, options, self._vocabularies, checkpoint=None, device_id=-1)
        optimizer = Optimizer.from_opt(self._model, options)
        self._trainer = build_trainer(options, -1, self._model, self._vocabularies, optimizer)
        self._work, self._precision = work, launch.precision

    def parameters(self) -> dict[str, int]:
        """Parameters by module, two levels deep; a shared table counts once."""
        return counted(self._model)

    def batch(self, step: int) -> Any:
        """`src`, `srclen` and `tgt` as its data pipeline hands them over, but with EOS behind the source, as ours."""
        pairs = self._work.pairs(step)
        source, lengths = self._padded([[*source, EOS] for source, _ in pairs])
        target, target_lengths = self._padded([[SOS, *target, EOS] for _, target in pairs])
        return {"src": source, "srclen": lengths, "tgt": target}, int(target_lengths.sum()) - len(pairs)

    def train(self, batch: Any) -> tuple[float, int]:
        """The trainer's accumulation of a single batch, which ends in the optimizer's step."""
        from onmt.utils import Statistics

        tensors, tokens = batch
        total, report = Statistics(), Statistics()
        self._model.train()
        with self._autocast():
            self._trainer._gradient_accumulation([tensors], tokens, total, report)
        if total.n_words != tokens:
            raise ValueError(f"OpenNMT-py scored {total.n_words} tokens of {tokens}")
        return total.loss, tokens

    def rules(self, beam: int) -> list[str]:
        """Its beam search has one rule; a beam of one can also be searched by its greedy search."""
        return ["top ended"] if beam > 1 else ["top ended", GREEDY]

    def decode(self, beam: int, batch_size: int, rule: str) -> Decoded:
        """Batches of sentences of like length, longest first, through `translate_batch`."""
        translator = self._translator(beam, rule == GREEDY)
        sentences = [line.split(" ") for line in self._work.test]
        order = sorted(range(len(sentences)), key=lambda number: -len(sentences[number]))
        outputs: list[list[str]] = [[] for _ in sentences]
        self._model.eval()
        with counting_rows(self._model.decoder, "forward", 0) as rows, self._autocast():
            for start in range(0, len(order), batch_size):
                numbers = order[start : start + batch_size]
                source, lengths = self._padded([[*sentences[number], EOS] for number in numbers])
                found = translator.translate_batch({"src": source, "srclen": lengths}, attn_debug=False)
                for number, best in zip(numbers, found["predictions"], strict=True):
                    outputs[number] = self._tokens(best[0].tolist())
        return Decoded(outputs, rows[0])

    def save(self, path: Path) -> None:
        """Write the model's parameters."""
        save_parameters(self._model, path)

    def load(self, path: Path) -> None:
        """Take up what `save` wrote."""
        load_parameters(self._model, path)

    def versions(self) -> dict[str, str]:
        """Of OpenNMT-py and of torch."""
        import onmt
        import torch

        return {"OpenNMT-py": onmt.__version__, "torch": torch.__version__}

    def _padded(self, sentences: Sequence[list[str]]) -> tuple[Any, Any]:
        """[batch, time, 1] token numbers and [batch] lengths."""
        import torch

        vocabulary = self._vocabularies["src"]
        lengths = torch.tensor([len(sentence) for sentence in sentences])
        rows = torch.full((len(sentences), int(lengths.max())), vocabulary[PAD])
        for row, sentence in zip(rows, sentences, strict=True):
            row[: len(sentence)] = torch.tensor([vocabulary[token] for token in sentence])
        return rows.unsqueeze(-1), lengths

    def _tokens(self, numbers: list[int]) -> list[str]:
        tokens = [self._vocabularies["tgt"].lookup_index(number) for number in numbers]
        return tokens[: tokens.index(EOS)] if EOS in tokens else tokens

    def _translator(self, beam: int, greedy: bool) -> Any:
        from onmt.translate import GNMTGlobalScorer
        from onmt.translate.translator import Translator

        return Translator(
            self._model,
            self._vocabularies,
            beam_size=beam,
            n_best=1,
            max_length=self._work.settings.max_length,
            max_length_ratio=0,
            random_sampling_topk=int(greedy),
            global_scorer=GNMTGlobalScorer(0.0, 0.0, None, "none"),
            report_score=False,
            dump_beam="",
            seed=-1,
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        return _bf16() if self._precision == "bf16" else nullcontext()


def _options(work: Work) -> Any:
    """The options of `onmt_train` for the work's settings, everything else at its default."""
    from onmt.opts import train_opts
    from onmt.utils.parse import ArgumentParser

    settings, units = work.settings, str(work.settings.units)
    parser = ArgumentParser()
    train_opts(parser)
    words = ["-data", "{}", "-src_vocab", "-", "-model_type", "text", "-encoder_type", "brnn", "-decoder_type", "rnn"]
    words += ["-rnn_type", "GRU", "-input_feed", "1", "-global_attention", "general"]
    words += ["-enc_layers", str(settings.layers), "-dec_layers", str(settings.layers)]
    words += ["-hidden_size", units, "-word_vec_size", units, "-dropout", str(settings.dropout)]
    words += ["-param_init", str(settings.start), "-optim", "adam", "-learning_rate", str(settings.learning_rate)]
    words += ["-adam_beta2", "0.999", "-max_grad_norm", str(settings.clip_norm), "-normalization", "tokens"]
    words += ["-share_vocab", *(["-share_embeddings", "-share_decoder_embeddings"] if settings.tied else [])]
    options, _ = parser.parse_known_args(words)
    ArgumentParser.update_model_opts(options)
    ArgumentParser.validate_model_opts(options)
    options.data = {}
    return options


def _bf16() -> AbstractContextManager[Any]:
    """Products in bf16 on the CPU."""
    import torch

    return torch.autocast("cpu", dtype=torch.bfloat16)


if __name__ == "__main__":
    serve(OpenNmt, sys.argv[1:])
