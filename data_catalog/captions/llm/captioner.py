"""Samples to the `captions` table by asking a multi-modal language model.

First every question is answered (`data_catalog.captions.llm.job`, one process and one event loop), each
answer kept by its content as it comes. Then the table is built as all tables are, by actors that read the
kept answers. So the table follows from the answers alone, and the actors need neither network nor key.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from data_catalog.captions.caption_table import (
    TEMPLATE_VERSION,
    CaptionWriter,
    redaction_settings,
    summarise_captions,
)
from data_catalog.captions.llm.answers import Answer, AnswerStore
from data_catalog.captions.llm.client import ClientSettings, check_endpoint
from data_catalog.captions.llm.job import AnswerJob
from data_catalog.captions.llm.question_images import ROW_COLUMNS
from data_catalog.captions.llm.questions import PROMPTS_VERSION, Model, Question, Questions, as_predictions
from data_catalog.captions.predicted_attributes import SOURCES, FilledAttribute, Predictions, fill
from data_catalog.cards import load_card
from data_catalog.errors import CatalogError
from data_catalog.progress import Progress
from data_catalog.tables.building import ShardMaker, build_table
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.table import Table

_READERS = 16
"""Answers that an actor reads at the same time; on object storage each takes a while."""


class LlmCaptionSettings(BaseModel):
    """How a language model captions.

    Attributes:
        captioner: The language model.
        model: Its name, as the endpoint knows it.
        card: Card whose attributes are asked for and whose template writes the sentence.
        filling: Who decides between predictions that differ: the model (step two), or the rule that the most
            confident prediction wins. The rule also decides where the model's choice is of no use.
        redact: Whether the model is told to read no text in the images.
        temperature: Sampling temperature; None leaves it to the endpoint.
        max_answer_tokens: Length at which an answer is cut.
        failed: What becomes of a question that the endpoint did not answer: `stop` refuses the table,
            `unknown` leaves the prediction out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    captioner: Literal["llm"] = "llm"
    model: str = Field(min_length=1)
    card: str = "synthetic_person"
    filling: Literal["llm", "rules"] = "llm"
    redact: bool = False
    temperature: float | None = Field(0.0, ge=0, allow_inf_nan=False)
    max_answer_tokens: int = Field(1500, ge=1)
    failed: Literal["stop", "unknown"] = "stop"


def make_llm_captions(
    samples: Table,
    settings: LlmCaptionSettings,
    client: ClientSettings,
    progress: Progress | None = None,
    asking: Progress | None = None,
) -> Table:
    """The `captions` table that a language model's answers make.

    Answers are kept below the data set's folder (`data_catalog.captions.llm.answers`). A job that was
    interrupted, or whose budget was used up, goes on where it stopped.

    Args:
        samples: What to caption.
        settings: Model, card and filling; with the samples they decide which table it is.
        client: Endpoint, limits and budget; these shape no answer.
        progress: Called as shards complete.
        asking: Called with (samples asked about, samples in all).

    Returns:
        The table; `statistics` holds `unknown`, `missing` and `empty` as for `make_captions`, `choices` (who
        decided: `llm`, `rules` in its place, or nobody because there was `one` value or the rule was asked
        for), `faults` (kind to the answers that stayed unusable in part) and `llm` (questions, requests,
        retries, tokens, cost).

    Raises:
        CatalogError: If endpoint, key or model are wrong (after one request), the budget is used up, or
            questions stay unanswered. What is answered is kept.
    """
    check_endpoint(client)
    card = load_card(settings.card)
    model = Model(settings.model, settings.temperature, settings.max_answer_tokens)
    questions = Questions(card, model, settings.redact)
    store = AnswerStore.of(samples.catalog, samples.manifest.dataset)
    job = AnswerJob(
        samples=samples,
        questions=questions,
        store=store,
        client=client,
        has_choice=settings.filling == "llm",
        stops_at_failure=settings.failed == "stop",
    )

    def summarise(shards: list[dict[str, Any]]) -> dict[str, Any]:
        totals = {
            name: {
                key: sum(shard[name].get(key, 0) for shard in shards)
                for key in sorted({key for shard in shards for key in shard[name]})
            }
            for name in ("choices", "faults", "models")
        }
        return summarise_captions(shards, settings.redact) | totals | {"llm": job.report()}

    return build_table(
        catalog=samples.catalog,
        dataset=samples.manifest.dataset,
        kind=TableKind.CAPTIONS,
        settings=settings.model_dump(exclude={"redact"})
        | {"template": TEMPLATE_VERSION, "prompts": PROMPTS_VERSION, "schema": questions.schema_digest}
        | redaction_settings(settings.redact),
        inputs={"samples": samples.digest},
        work=[{"shard": number} for number in range(len(samples.manifest.shards))],
        maker=_LlmCaptionsMaker(
            samples,
            questions,
            store,
            CaptionWriter(tuple(card.attributes), card.kind, settings.redact),
            settings.filling == "llm",
            settings.failed == "stop",
        ),
        summarise=summarise,
        created={"endpoint": client.endpoint},
        before=lambda: job.run(asking),
        progress=progress,
    )


def choose(
    predictions: Predictions, choice: Mapping[str, str] | None, counts: dict[str, int] | None = None
) -> dict[str, FilledAttribute]:
    """What is known of a sample after step two.

    Args:
        predictions: What the sources said.
        choice: Attribute to the value that the model chose among those on offer; None where it was not asked.
        counts: Where to count who decided.

    Returns:
        The rule's filling (`fill`), with the model's value wherever it chose one. Confidence and
        source are those of the most confident prediction that offered the value.
    """
    filled = fill(predictions)
    for name, ruled in filled.items():
        offers = {
            found.value.strip()
            for source in SOURCES
            if (found := predictions.get(source, {}).get(name)) is not None and found.is_known
        }
        who = "rules" if len(offers) > 1 else "one"
        value = (choice or {}).get(name)
        if len(offers) > 1 and value in offers:
            who = "llm"
            if value != ruled.value:
                narrowed = {
                    source: {name: found}
                    for source in SOURCES
                    if (found := predictions.get(source, {}).get(name)) is not None
                    and found.value.strip() == value
                }
                filled[name] = fill(narrowed)[name]
        if counts is not None:
            counts[who] = counts.get(who, 0) + 1
    return filled


@dataclass
class _LlmCaptionsMaker(ShardMaker):
    samples: Table
    questions: Questions
    store: AnswerStore
    writer: CaptionWriter
    has_choice: bool
    needs_all: bool

    @property
    def is_light(self) -> bool:
        return True

    def is_final(self, statistics: Mapping[str, Any]) -> bool:
        # What was unanswered then may be answered by now, and the table must not depend on when it was begun.
        return not statistics["unanswered"]

    def make(self, work: Mapping[str, Any]) -> tuple[pa.Table, dict[str, Any]]:
        keys = self.samples.read_shard(work["shard"], ["sample_index", "sample_id"])
        rows = self.samples.read_shard(work["shard"], ROW_COLUMNS).to_pylist()
        with ThreadPoolExecutor(_READERS) as readers:
            samples = list(readers.map(self._sample, rows))
        counts: dict[str, dict[str, int]] = {"choices": {}, "faults": {}, "models": {}}
        for _, _, answers in samples:
            for answer in filter(None, answers):
                for name, key in (("faults", answer.fault), ("models", answer.model)):
                    if key:
                        counts[name][key] = counts[name].get(key, 0) + 1
        filled = [choose(predictions, choice, counts["choices"]) for predictions, choice, _ in samples]
        table, statistics = self.writer.write(keys, [predictions for predictions, _, _ in samples], filled)
        unanswered = sum(answers.count(None) for _, _, answers in samples)
        return table, statistics | counts | {"unanswered": unanswered}

    def _sample(
        self, row: Mapping[str, Any]
    ) -> tuple[Predictions, dict[str, str] | None, list[Answer | None]]:
        """Readings of a sample, what the model chose among them, and every answer; None for one not given."""
        answers: list[Answer | None] = []
        predictions: dict[str, Any] = {}
        for source, question in self.questions.about(row).items():
            answers.append(answer := self._answer(question, row))
            if answer is not None:
                predictions[source] = as_predictions(answer.values)
        question_two = self.questions.choice(predictions) if self.has_choice else None
        if question_two is None:
            return predictions, None, answers
        answers.append(chosen := self._answer(question_two, row))
        return predictions, None if chosen is None else chosen.values, answers

    def _answer(self, question: Question, row: Mapping[str, Any]) -> Answer | None:
        answer = self.store.read(question.digest)
        if answer is None and self.needs_all:
            raise CatalogError(
                f"sample {row['sample_id']}: the answer about {question.source} is gone from "
                f"{self.store.root}; run the same command again to ask for it"
            )
        return answer
