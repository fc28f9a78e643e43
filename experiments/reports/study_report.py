"""The report of a study: one HTML page that needs no other file, and the same content as Markdown."""

from pathlib import Path

from data_catalog.storage.folders import Folder
from experiments.reports.ablation_sections import ablation_sections
from experiments.reports.provenance import find_provenance
from experiments.reports.recorded_study import RecordedStudy
from experiments.reports.report_files import StudyReport
from experiments.reports.report_page import render
from experiments.reports.report_tables import ablation_tables, sweep_table
from experiments.reports.sweep_sections import sweep_sections
from experiments.studies.published import PUBLISHED, load_published
from experiments.studies.sweep.sweep_result import SweepResult


def write_report(study: RecordedStudy, page: str | Path) -> StudyReport:
    """Write a study's page, its Markdown and its pictures.

    Args:
        study: As it was recorded.
        page: The HTML file, path or URI; the Markdown and the folder of the pictures are written beside it.
    """
    if isinstance(study.result, SweepResult):
        tables, sections = [sweep_table(study)], sweep_sections(study)
    else:
        tables, sections = ablation_tables(study), ablation_sections(study)
    target = Folder(page)
    folder, stem = target.parent, target.name.rpartition(".")[0] or target.name
    picture_folder = folder / f"{stem}_pictures"
    pictures = [picture for section in sections for picture in section.pictures]
    for picture in pictures:
        picture_folder.write(picture.name, picture.data)
    parts = {
        "study": study,
        "tables": tables,
        "sections": sections,
        "provenance": find_provenance(study),
        "notes": study.result.notes,
        "paper": load_published(PUBLISHED).paper,
        "folder": picture_folder.name,
    }
    markdown = f"{stem}.md"
    for name, template in ((target.name, "study_report.html.j2"), (markdown, "study_report.md.j2")):
        folder.write(name, render(template, parts))
    return StudyReport(
        study=study.name,
        kind=study.result.kind,
        page=target.location,
        markdown=folder.file(markdown),
        pictures=tuple(picture_folder.file(picture.name) for picture in pictures),
        missing={section.title: section.missing for section in sections if section.missing is not None},
        mlflow=study.mlflow,
    )
