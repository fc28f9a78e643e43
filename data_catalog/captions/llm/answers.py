"""Answers of a language model, kept by the content of the question, so that none is paid for twice.

`<catalog>/<dataset>/answers/<ab>/<digest>.json` holds one answer. The digest is over all that the answer
depends on (model, prompt, schema, image bytes), and over nothing else: not the endpoint, not the data set.
`answers/<job>.lost` holds the tokens that a job may have paid for in vain.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import fs
from pydantic import Field, TypeAdapter, ValidationError

from data_catalog.captions.llm.budget import NO_USAGE, ImageSize, Usage
from data_catalog.errors import CatalogError
from data_catalog.records import Record, describe_invalid
from data_catalog.storage import filesystems
from data_catalog.storage.claims import claim

FOLDER = "answers"
# On object storage a job waits so long for one that was killed.
_EXPIRY_SECONDS = 10.0


class Answer(Record):
    """What a question came to."""

    values: dict[str, Any]
    """Attribute to what was said of it, checked; an attribute without a usable answer is absent. One without
    any is not kept."""
    fault: str = ""
    """Why attributes are absent that were asked for (`refused`, `malformed`, `cut`, `empty`), though the
    question was asked again; "" where none is."""
    requests: int = Field(ge=1)
    """Requests that it took."""
    prompt_tokens: int = Field(ge=0)
    """Tokens sent, over all of them."""
    completion_tokens: int = Field(ge=0)
    """Tokens received."""
    images: tuple[ImageSize, ...] = ()
    """Size of each image that was shown; a later job estimates the tokens of others from it."""
    model: str = ""
    """The model that answered, as the endpoint reports it."""

    @property
    def usage(self) -> Usage:
        """Its tokens."""
        return Usage(self.prompt_tokens, self.completion_tokens)


_Stored = TypeVar("_Stored")
_ANSWER, _USAGE = TypeAdapter(Answer), TypeAdapter(Usage)


@dataclass(frozen=True)
class AnswerStore:
    """The answers of a data set; can be sent to other processes.

    Attributes:
        root: Folder or URI.
    """

    root: str

    @classmethod
    def of_dataset(cls, catalog: str, dataset: str) -> "AnswerStore":
        """The answers that a catalog keeps for a data set."""
        # Actors run in other folders, so a relative catalog would be another one there.
        root = catalog if "://" in catalog else str(Path(catalog).resolve())
        return cls(filesystems.join(root, dataset, FOLDER))

    @cached_property
    def _location(self) -> tuple[fs.FileSystem, str]:
        return filesystems.open_root(self.root)

    def __getstate__(self) -> dict[str, Any]:
        # A pickled filesystem of object storage holds credentials.
        return {"root": self.root}

    def digests(self) -> set[str]:
        """Digests of all questions that are answered."""
        filesystem, folder = self._location
        files = filesystem.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
        return {info.base_name.removesuffix(".json") for info in files if info.base_name.endswith(".json")}

    def read(self, digest: str) -> Answer | None:
        """The answer to a question, or None where there is none yet.

        Raises:
            CatalogError: If the file holds no answer.
        """
        answer = self._read(
            f"{digest[:2]}/{digest}.json",
            _ANSWER,
            "holds no answer ({}); delete the file, so that the question is asked again",
        )
        # Earlier versions kept unusable answers too.
        return answer if answer is not None and answer.values else None

    def write(self, digest: str, answer: Answer) -> None:
        """Keep an answer.

        Raises:
            CatalogError: If it cannot be written.
        """
        self._write(f"{digest[:2]}/{digest}.json", answer.model_dump_json().encode())

    def read_lost(self, job: str) -> Usage:
        """Tokens that a job may have paid for without an answer, over all times that it ran.

        Raises:
            CatalogError: If the file does not hold them.
        """
        return (
            self._read(
                f"{job}.lost",
                _USAGE,
                "does not hold the tokens of lost answers ({}); delete the file, and give that much less "
                "with --budget-usd",
            )
            or NO_USAGE
        )

    def write_lost(self, job: str, usage: Usage) -> None:
        """Keep what `read_lost` gives.

        Raises:
            CatalogError: If it cannot be written.
        """
        self._write(f"{job}.lost", _USAGE.dump_json(usage))

    def claim(self) -> AbstractContextManager[object]:
        """Wait until no other job adds answers, and keep others from it: two would pay for the same one.

        Raises:
            NotWritableError: If the folder cannot be written to.
        """
        return claim(self.root, wait=lambda: True, expiry_seconds=_EXPIRY_SECONDS)

    def _read(self, name: str, form: TypeAdapter[_Stored], fault: str) -> _Stored | None:
        filesystem, folder = self._location
        try:
            with filesystem.open_input_stream(f"{folder}/{name}", compression=None) as stream:
                text = stream.read()
        except FileNotFoundError:
            return None
        try:
            return form.validate_json(text)
        except ValidationError as error:
            reason = describe_invalid(error, "the file")
            raise CatalogError(f"{folder}/{name} {fault.format(reason)}") from None

    def _write(self, name: str, data: bytes) -> None:
        filesystem, folder = self._location
        filesystems.write_atomically(filesystem, f"{folder}/{name}", data + b"\n")
