"""The report of a study: one HTML page that asks nobody for anything, and the same as Markdown."""

from pathlib import Path
from typing import Any

from data_catalog.storage import filesystems
from experiments.reports.ablation_sections import ablation_sections, ablation_tables
from experiments.reports.number_origins import provenance
from experiments.reports.page import render
from experiments.reports.study_records import RecordedStudy
from experiments.reports.sweep_sections import sweep_sections, sweep_table
from experiments.studies.published import PUBLISHED, load_published
from experiments.studies.sweep.sweep_result import SweepResult


def write_report(study: RecordedStudy, page: Path) -> dict[str, Any]:
    """Write a study's page, its Markdown and its pictures.

    Args:
        study: As MLflow has it.
        page: The HTML file; the Markdown lies beside it, the pictures in a folder beside it.

    Returns:
        JSON values only: `study`, `kind`, `page`, `markdown`, `pictures` (paths), `missing` (section to the
        reason why it could not be drawn), `mlflow`.
    """
    if isinstance(study.result, SweepResult):
        tables, sections = [sweep_table(study)], sweep_sections(study)
    else:
        tables, sections = ablation_tables(study), ablation_sections(study)
    folder = page.parent / f"{page.stem}_pictures"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [picture for section in sections for picture in section.pictures]
    for picture in pictures:
        (folder / picture.name).write_bytes(picture.data)
    shown = {
        "study": study,
        "tables": tables,
        "sections": sections,
        "provenance": provenance(study),
        "notes": () if isinstance(study.result, SweepResult) else study.result.notes,
        "paper": load_published(PUBLISHED).paper,
        "folder": folder.name,
    }
    markdown = page.with_suffix(".md")
    for path, template in ((page, "study_report.html.j2"), (markdown, "study_report.md.j2")):
        text = render(template, shown)
        filesystems.write_atomically(*filesystems.open_root(path), text.encode())
    return {
        "study": study.name,
        "kind": study.kind,
        "page": str(page),
        "markdown": str(markdown),
        "pictures": [str(folder / picture.name) for picture in pictures],
        "missing": {section.title: section.missing for section in sections if section.missing is not None},
        "mlflow": {"uri": study.uri, "run_id": study.run_id, "experiment_id": study.experiment_id},
    }
