"""All figures that the facts of a run allow, in the sections of its report."""

from hf_lmmixup.comparison_figures import arms, costs
from hf_lmmixup.figures import Facts, Figure, by_model
from hf_lmmixup.row_figures import cluster_map, cluster_sizes, ledger_flow, score_histogram, score_transitions
from hf_lmmixup.training_figures import held_out_rewards, loss_curve, reward_curves, systems


def figure_sections(facts: Facts) -> list[tuple[str, list[Figure]]]:
    """Titles and figures; a section without a figure is left out.

    Args:
        facts: The facts of a run directory.

    Returns:
        The sections in the order of the page.
    """
    histories = by_model(facts, "histories").items()
    training = [
        (reward_curves if any("reward" in entry for entry in history) else loss_curve)(title, history)
        for title, history in histories
    ]
    sections: list[tuple[str, list[Figure | None]]] = [
        ("Rows", [ledger_flow(facts), score_histogram(facts), cluster_sizes(facts), cluster_map(facts)]),
        ("Distiller", [held_out_rewards(facts), systems(facts), *training]),
        ("Judge", [*score_transitions(facts)]),
        ("Comparison", [*arms(facts)]),
        ("Cost", [costs(facts)]),
    ]
    kept = [(title, [figure for figure in figures if figure is not None]) for title, figures in sections]
    return [(title, figures) for title, figures in kept if figures]


def run_figures(facts: Facts) -> list[Figure]:
    """All figures, one after the other."""
    return [figure for _, figures in figure_sections(facts) for figure in figures]
