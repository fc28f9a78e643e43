"""A plan of a reproduction for a terminal."""

from experiments.planning.plan_printout import print_findings
from experiments.planning.study_printout import print_study_plan
from experiments.reproducing.reproduction_plan import ReproductionPlan
from experiments.terminal_tables import text_console


def print_reproduction_plan(plan: ReproductionPlan) -> None:
    """Print a plan for a terminal; the command makes the tables that it lists as missing."""
    console = text_console()
    print_study_plan(plan.study)
    for line in _describe(plan):
        console.print(line, soft_wrap=True)
    print_findings(console, [error for error in plan.errors if error not in plan.study.errors], [])


def _describe(plan: ReproductionPlan) -> list[str]:
    found = "is missing" if plan.images is None else f"has {plan.images} samples"
    lines = [f"source: {plan.dataset} {found}"]
    if (masks := plan.masks) is not None:
        lines.append(
            f"masks: {masks.hours:.2f} hours on this machine, {masks.seconds_per_sample:.2f} s for a sample "
            f"(measured on {masks.measured}), {masks.processes} at a time"
        )
    if (answers := plan.captions) is not None:
        cost = "name its prices for a cost" if answers.cost_usd is None else f"{answers.cost_usd:.2f} dollars"
        lines.append(
            f"captions: {answers.questions} questions, at most {answers.prompt_tokens / 1e6:.1f} million "
            f"tokens sent and {answers.completion_tokens / 1e6:.1f} million answered: {cost}"
        )
    return lines
