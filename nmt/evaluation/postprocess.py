"""From a hypothesis to the text that a person reads: UNK replaced where asked for, tokens joined, Moses undone."""

from __future__ import annotations

from collections.abc import Mapping

from nmt.config.schema import DataConfig, SearchConfig
from nmt.data.cleaning import clean
from nmt.data.tokenizer import Tokenizer, to_text
from nmt.evaluation.unknown import read_dictionary, stand_ins
from nmt.search.beam import Hypothesis


class Postprocessor:
    """What a run's tokenizers, its data and a search make of hypotheses.

    Raises UserError for a dictionary that cannot be read.
    """

    def __init__(
        self, source_tokenizer: Tokenizer, target_tokenizer: Tokenizer, data: DataConfig, search: SearchConfig
    ):
        self._source, self._target, self._data = source_tokenizer, target_tokenizer, data
        self.needs_attention = search.replace_unknown
        self._dictionary: Mapping[str, str] = read_dictionary(search.dictionary) if search.dictionary else {}

    def source_tokens(self, line: str) -> list[str]:
        """The tokens of a source line, as they are written, in the order of a hypothesis' attention."""
        return self._source.segment(clean(line, self._data, self._data.source_language))

    def text(self, hypothesis: Hypothesis, line: str) -> str:
        """The text of a hypothesis for the source `line`; it carries its attention where `needs_attention`."""
        instead = None
        if self.needs_attention and hypothesis.tokens:
            assert hypothesis.attention is not None
            instead = stand_ins(hypothesis.attention, self.source_tokens(line), self._dictionary)
        return to_text(self._target, hypothesis.tokens, self._data, self._data.target_language, instead)
