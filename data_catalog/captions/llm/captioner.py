"""Samples to the `captions` table by asking a multi-modal language model.

First every question is answered (`data_catalog.captions.llm.job`, one process and one event loop), each
answer kept by its content as it comes. Then the table is built as all tables are, by actors that read the
kept answers. So the table follows from the answers alone, and the actors need neither network nor key.
"""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from data_catalog.captions.caption_table import TEMPLATE_VERSION
from data_catalog.captions.caption_writer import (
    CaptionWriter,
    redaction_settings,
    summarise_captions,
    total_counts,
)
from data_catalog.captions.llm.answers import Answer, AnswerStore
from data_catalog.captions.llm.job import READERS, AnswerJob, SampleAnswers, read_sample
from data_catalog.captions.llm.llm_settings import ClientSettings, LlmCaptionSettings, check_endpoint
from data_catalog.captions.llm.prompts import PROMPTS_VERSION, ROW_COLUMNS
from data_catalog.captions.llm.questions import Question, Questions, offered
from data_catalog.captions.predicted_attributes import FilledAttribute, Predictions, fill
from data_catalog.cards import load_card
from data_catalog.errors import CatalogError
from data_catalog.progress import Progress, no_progress
from data_catalog.tables.building import build_table
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.shards import ShardMaker, Statistics
from data_catalog.tables.table import Table


def make_llm_captions(
    samples: Table,
    settings: LlmCaptionSettings,
    client: ClientSettings,
    progress: Progress = no_progress,
    asking: Progress = no_progress,
) -> Table:
    """The `captions` table that a language model's answers make.

    Answers are kept below the data set's folder (`data_catalog.captions.llm.answers`). A job that was
    interrupted, or whose budget was used up, continues where it stopped.

    Args:
        samples: What to caption.
        settings: Model, card and filling; with the samples they decide which table it is.
        client: Endpoint, limits and budget; these shape no answer.
        progress: Called as shards complete.
        asking: Called with (samples asked about, samples in all).

    Returns:
        The table; `statistics` are `CaptionStatistics`, with those of a language model.

    Raises:
        CatalogError: If endpoint, key or model are wrong (after one request), the budget is used up, or
            questions stay unanswered, or too many answers cannot be used. What is answered is kept.
    """
    check_endpoint(client)
    card = load_card(settings.card)
    questions = Questions(card, settings)
    store = AnswerStore.of_dataset(samples.catalog, samples.manifest.dataset)
    job = AnswerJob(samples, questions, store, client)

    def summarise(shards: list[Statistics]) -> Statistics:
        return {
            **summarise_captions(shards, settings.redact),
            **{name: total_counts(shards, name) for name in ("choices", "faults", "models")},
            "llm": job.statistics().model_dump(),
        }

    return build_table(
        catalog=samples.catalog,
        dataset=samples.manifest.dataset,
        kind=TableKind.CAPTIONS,
        settings=settings.model_dump(exclude={"redact"})
        | {"template": TEMPLATE_VERSION, "prompts": PROMPTS_VERSION, "schema": questions.schema_digest}
        | redaction_settings(settings.redact),
        inputs={"samples": samples.digest},
        specs=range(len(samples.manifest.shards)),
        maker=_LlmCaptionsMaker(
            samples,
            questions,
            store,
            CaptionWriter(tuple(card.attributes), card.kind, settings.redact),
            job.unusable,
        ),
        summarise=summarise,
        created={"endpoint": client.endpoint},
        before=lambda: job.run(asking),
        progress=progress,
    )


def choose(
    predictions: Predictions, choice: Mapping[str, str] | None, counts: Counter[str] | None = None
) -> dict[str, FilledAttribute]:
    """What is known of a sample after step two.

    Args:
        predictions: What each source shows.
        choice: Attribute to the value that the model chose among those on offer; None where it was not asked.
        counts: Where to count who decided.

    Returns:
        What the rule fills in (`predicted_attributes.fill`), with the model's value wherever it chose one.
        Confidence and source are those of the most confident prediction of the value.
    """
    filled = fill(predictions)
    for name, values in offered(predictions).items():
        value = (choice or {}).get(name)
        decided_by = "one" if len(values) == 1 else "llm" if value in values else "rules"
        if decided_by == "llm":
            filled |= fill(
                {
                    source: {name: found[name]}
                    for source, found in predictions.items()
                    if name in found and found[name].value.strip() == value
                }
            )
        if counts is not None:
            counts[decided_by] += 1
    return filled


@dataclass
class _LlmCaptionsMaker(ShardMaker[int]):
    """Writes captions from kept answers.

    Attributes:
        unusable: Digest of each question that may be without one, to the answer that is no use.
    """

    is_light = True

    samples: Table
    questions: Questions
    store: AnswerStore
    writer: CaptionWriter
    unusable: Mapping[str, Answer]

    def is_final(self, statistics: Mapping[str, Any]) -> bool:
        # An answer that was missing then may be there now; the table must not depend on when it was begun.
        return not statistics["unanswered"] and statistics["empty"] < statistics["samples"]

    def make(self, number: int) -> tuple[pa.Table, Statistics]:
        keys = self.samples.read_shard(number, ["sample_index", "sample_id"])
        rows = self.samples.read_shard(number, ROW_COLUMNS).to_pylist()

        def read(row: Mapping[str, Any]) -> SampleAnswers:
            return read_sample(row, self.questions, lambda question: self._read(question, row))

        with ThreadPoolExecutor(READERS) as readers:
            samples = list(readers.map(read, rows))
        choices = Counter[str]()
        filled = [choose(sample.predictions, sample.choice, choices) for sample in samples]
        table, statistics = self.writer.write(keys, [sample.predictions for sample in samples], filled)
        answers = [answer for sample in samples for _, answer in sample.answers]
        asked = [
            answer or self.unusable.get(question.digest)
            for sample in samples
            for question, answer in sample.answers
        ]
        return table, statistics | {
            "choices": choices,
            "faults": Counter(answer.fault for answer in asked if answer and answer.fault),
            "models": Counter(answer.model for answer in answers if answer and answer.model),
            "unanswered": answers.count(None),
        }

    def _read(self, question: Question, row: Mapping[str, Any]) -> Answer | None:
        answer = self.store.read(question.digest)
        is_expected = self.questions.settings.failed == "stop" and question.digest not in self.unusable
        if answer is None and is_expected:
            raise CatalogError(
                f"sample {row['sample_id']}: the answer about {question.source} is gone from "
                f"{self.store.root}; run the same command again to ask for it"
            )
        return answer
