r"""Search for a person or vehicle: rank the samples of a data set, or of a folder of images, by distance.

    python experiments/search.py --run runs/train/demo-seed0-1a2b3c4d --query rgb.jpg,nir.jpg,tir.jpg \
        --mask mask.png --caption "a man in a red jacket" --gallery synthetic_person --picture found.png
    python experiments/search.py --run runs/train/demo-seed0-1a2b3c4d --query night.jpg --gallery /data/photos
    python experiments/search.py --run runs/train/demo-seed0-1a2b3c4d --query ,nir.jpg --gallery ./yard --json

A gallery is a data set of the catalog (the gallery of its test split), or a folder: photographs, or the
subfolders rgb, nir, tir and mask with one name for each sample, and captions.txt with a line for each. What a
sample lacks is missing as the paper's evaluation has it: images become zeros. Samples are embedded once: the
embeddings and a faiss index are kept in WORKSPACE/search until the files or the model are others. faiss is an
optional package: pip install 'stmi[search]'.
"""

import argparse
import importlib.util
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run as a file: the tree around it is the code that runs
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data_catalog.process import begin_process

    begin_process()


from data_catalog.command_parser import CommandParser, local_path
from data_catalog.records import FOLDER_NAME, add_json_options
from data_catalog.storage.folders import Folder
from data_catalog.storage.local_copies import local_files
from experiments.command_line import add_workspace, check_file, print_notes, run_command
from experiments.evaluating.image_folder import (
    CAPTION,
    IMAGES,
    LAYOUT,
    MASK,
    ImageFolder,
    read_folder,
)
from experiments.experiment_config import ConfigError
from experiments.run.run_folder import RunFolder
from experiments.run.run_options import CATALOG, resolve_workspace
from experiments.run.run_result import FEATURE_NAMES
from experiments.searching.search_result import SearchResult
from experiments.terminal_tables import print_table, text_console, text_table

if TYPE_CHECKING:
    from experiments.searching.galleries import Gallery

SEARCH = "search"
"""Folder of all kept galleries in a workspace."""


def parse_query(text: str) -> dict[str, Path]:
    """The images of a query: one file, or files of RGB, NIR and TIR in this order with commas between.

    Raises:
        ConfigError: A file is missing, or there are more than three.
    """
    # The name of a file may hold a comma.
    parts = [text] if Path(text).is_file() else text.split(",")
    if len(parts) > len(IMAGES) or not any(parts):
        raise ConfigError(f"--query={text}: expected RGB[,NIR[,TIR]], with nothing for what is missing")
    found = {name: Path(part) for name, part in zip(IMAGES, parts, strict=False) if part}
    for name, path in found.items():
        if not path.is_file():
            raise ConfigError(f"--query={text}: there is no {name} image {path}")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, metavar="DIR", help="a finished run's folder or URI")
    parser.add_argument(
        "--query",
        required=True,
        metavar="RGB[,NIR[,TIR]]",
        help="image files of the sample to search for; nothing for a modality that is missing (,nir.jpg)",
    )
    parser.add_argument(
        "--mask", type=local_path, metavar="FILE", help="foreground mask of the query (default: none)"
    )
    parser.add_argument("--caption", metavar="TEXT", help="description of the query (default: none)")
    parser.add_argument(
        "--camera",
        type=int,
        metavar="N",
        help="camera of the query, from 0, for a model with model.camera_embedding (default: another one)",
    )
    parser.add_argument(
        "--gallery",
        required=True,
        metavar="NAME|DIR",
        help="a data set of the catalog, or a folder of images (./NAME where both are there)",
    )
    parser.add_argument("--top", type=int, default=20, metavar="N", help="samples to show (default: 20)")
    parser.add_argument(
        "--feature",
        choices=FEATURE_NAMES,
        help="to compare (default: as the run reports; G if text is lacking)",
    )
    parser.add_argument(
        "--picture", metavar="FILE", help="draw query and samples to a PNG file or URI (default: not drawn)"
    )
    parser.add_argument(
        "--index",
        default="Flat",
        metavar="KIND",
        help="of faiss.index_factory: Flat compares all samples; HNSW32 or IVF1024,Flat are faster in "
        "galleries of millions, and may miss samples (default: Flat)",
    )
    parser.add_argument(
        "--epoch",
        choices=("reported", "last"),
        default="reported",
        help="whose weights: of the epoch that the run reports, or of its last one (default: reported)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="Ray actors that embed a data set; 0 for this process alone, which embeds a folder in any case "
        "(default: 0)",
    )
    add_workspace(parser)
    parser.add_argument(
        "--catalog",
        help="folder or URI of the data set's catalog (default: the run's own, or WORKSPACE/catalog)",
    )
    add_json_options(parser, SearchResult)
    given = parser.parse_args(arguments)
    return run_command(lambda: _search(given), given.json, show)


def _search(given: argparse.Namespace) -> SearchResult:
    """What the command line asks for.

    Raises:
        ConfigError: Arguments are wrong, or do not fit the run.
    """
    query: dict[str, object] = dict(parse_query(given.query))
    if given.mask is not None and not given.mask.is_file():
        raise ConfigError(f"--mask={given.mask}: there is no such file")
    query |= {
        name: value
        for name, value in ((MASK, given.mask), (CAPTION, given.caption), ("camera", given.camera))
        if value is not None
    }
    for name, least in (("top", 1), ("workers", 0)):
        if getattr(given, name) < least:
            raise ConfigError(f"--{name}={getattr(given, name)}: expected a number from {least}")
    if given.picture is not None:
        check_file("--picture", given.picture)
    if importlib.util.find_spec("faiss") is None:
        raise ConfigError("searching needs faiss; pip install 'stmi[search]'")
    run_folder = RunFolder.open(given.run, given.catalog)
    folder = find_folder(given.gallery, run_folder, given.catalog)

    import stmi
    from experiments.evaluating.evaluation_target import find_test_view, use_processors
    from experiments.searching.galleries import DatasetGallery, FolderGallery
    from experiments.searching.gallery_search import search

    gallery: Gallery
    use_processors()
    table = None
    if folder is None:
        own = run_folder.config.data.dataset == given.gallery and given.catalog is None
        dataset = None if own else given.gallery
        table = find_test_view(run_folder, dataset, given.catalog)
    run = stmi.load(run_folder.location, epoch=given.epoch)
    if folder is not None:
        gallery = FolderGallery(run, folder)
    else:
        assert table is not None
        gallery = DatasetGallery(run_folder.location, given.epoch, table, dataset, given.workers)
    root = local_files(resolve_workspace(given.workspace) / SEARCH) / run.name
    return search(run, gallery, query, root, given.top, given.feature, given.index, given.picture)


def find_folder(gallery: str, run: RunFolder, catalog: str | None) -> ImageFolder | None:
    """The folder that is searched; None for a data set.

    Raises:
        ConfigError: There is neither.
    """
    own = run.parent.parent / CATALOG
    is_dataset = re.fullmatch(FOLDER_NAME, gallery) is not None and (
        gallery == run.config.data.dataset or (Folder(catalog) if catalog else own).has_folder(gallery)
    )
    if is_dataset:
        return None
    if not Path(gallery).is_dir():
        raise ConfigError(
            f"--gallery={gallery}: neither a data set of catalog {catalog or own} nor a folder; a folder has "
            f"{LAYOUT}"
        )
    return read_folder(Path(gallery))


def show(result: SearchResult) -> None:
    """Print the rank list for a terminal."""
    console = text_console()
    has_labels = any(match.identity is not None for match in result.matches)
    table = text_table(
        f"{result.gallery}, {result.samples} samples, by {result.feature} of {result.run}",
        *("rank", "sample", "distance", *(("identity", "camera") if has_labels else ())),
    )
    for match in result.matches:
        known = (match.identity, match.camera_id) if has_labels else ()
        labels = ("" if label is None else str(label) for label in known)
        table.add_row(str(match.rank), match.sample_id, f"{match.distance:.4f}", *labels)
    print_table(console, table)
    print_notes(console, result.notes)
    for name, reason in result.left_out.items():
        print_notes(console, [f"left out {name}: {reason}"])
    embedded = f"{result.embedded} samples embedded" if result.embedded else "no sample embedded anew"
    console.print(
        f"{embedded}, searched in {result.search_seconds:.3f} s, kept in {result.kept_in}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
