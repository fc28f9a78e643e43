"""Answers of a language model, kept by the content of the question, so that none is paid for twice.

`<catalog>/<dataset>/answers/<ab>/<digest>.json` holds one answer. The digest is over all that the answer
depends on (model, prompt, schema, image bytes), and over nothing else: not the endpoint, not the data set.
`answers/<job>.lost` holds the tokens that a job may have paid for in vain.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock
from pyarrow import fs
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from data_catalog.captions.llm.prompt_sizes import ImageSize
from data_catalog.captions.llm.spending import Usage
from data_catalog.errors import CatalogError
from data_catalog.storage import filesystems

FOLDER = "answers"
_LOST = ".lost"
_USAGE = TypeAdapter(Usage)


class Answer(BaseModel):
    """What a question came to.

    Attributes:
        values: Attribute to what was said of it, checked; an attribute without a usable answer is absent.
        fault: Why attributes are absent that were asked for (`refused`, `malformed`, `cut`, `empty`), though
            the question was put again; "" where none is.
        requests: Requests that it took.
        prompt_tokens: Tokens sent, over all of them.
        completion_tokens: Tokens that came back.
        images: Size of each image that was shown: what a later job tells the tokens of others by.
        model: The model that answered, by the endpoint's account.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    values: dict[str, Any]
    fault: str = ""
    requests: int = Field(ge=1)
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    images: tuple[ImageSize, ...] = ()
    model: str = ""


@dataclass(frozen=True)
class AnswerStore:
    """The answers of a data set; can be sent to other processes.

    Attributes:
        root: Folder or URI.
    """

    root: str

    @classmethod
    def of(cls, catalog: str, dataset: str) -> "AnswerStore":
        """The answers that a catalog keeps for a data set."""
        # Actors run in other folders, so a relative catalog would be another one there.
        root = catalog if "://" in catalog else str(Path(catalog).resolve())
        return cls(filesystems.join(root, dataset, FOLDER))

    @cached_property
    def _location(self) -> tuple[fs.FileSystem, str]:
        return filesystems.open_root(self.root)

    def __getstate__(self) -> dict[str, Any]:
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
        filesystem, _ = self._location
        path = self._path(digest)
        try:
            with filesystem.open_input_stream(path, compression=None) as stream:
                text = stream.read()
        except FileNotFoundError:
            return None
        try:
            return Answer.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise CatalogError(
                f"{path} holds no answer ({where}: {first['msg']}); delete the file, so that the question is "
                "asked again"
            ) from None

    def write(self, digest: str, answer: Answer) -> None:
        """Keep an answer.

        Raises:
            CatalogError: If it cannot be written.
        """
        filesystems.write_atomically(
            self._location[0], self._path(digest), (answer.model_dump_json() + "\n").encode()
        )

    def read_lost(self, job: str) -> Usage:
        """Tokens that a job may have paid for without an answer, over all times that it ran.

        Raises:
            CatalogError: If the file does not hold them.
        """
        filesystem, folder = self._location
        path = f"{folder}/{job}{_LOST}"
        if not filesystems.exists(filesystem, path):
            return Usage()
        try:
            return _USAGE.validate_json(filesystems.read_buffer(filesystem, path).to_pybytes())
        except ValidationError:
            raise CatalogError(
                f"{path} does not hold the tokens of lost answers; delete the file, and give that much less "
                "with --budget-usd"
            ) from None

    def write_lost(self, job: str, usage: Usage) -> None:
        """Keep what `read_lost` gives.

        Raises:
            CatalogError: If it cannot be written.
        """
        filesystem, folder = self._location
        filesystems.write_atomically(filesystem, f"{folder}/{job}{_LOST}", _USAGE.dump_json(usage) + b"\n")

    @contextmanager
    def only_user(self) -> Iterator[None]:
        """Wait until no other job of this machine adds answers, so that two do not pay for the same one.

        On object storage nobody waits: there two jobs at the same time may ask the same question.
        """
        filesystem, folder = self._location
        if not isinstance(filesystem, fs.LocalFileSystem):
            yield
            return
        filesystem.create_dir(folder, recursive=True)
        with FileLock(Path(folder) / ".lock"):
            yield

    def _path(self, digest: str) -> str:
        return f"{self._location[1]}/{digest[:2]}/{digest}.json"
