"""The Leaderboard tab: what was measured with FOR beside what the paper says, as sortable tables and as drawings."""

import functools
from pathlib import Path

import gradio as gr
import pandas as pd

from for_app.views.charts import ablations_html, bars_html
from for_app.views.curves import read_ablations
from for_app.views.leaderboard import FOLDER, Board, main_columns, read_boards, sorted_by
from for_app.views.templates import render
from for_model.errors import DataError

_AS_IT_IS = "as in the table"


def leaderboard_tab(tab: gr.Tab, folder: Path = FOLDER) -> None:
    """Build the tab from the CSVs of a leaderboards folder; without them it says how to get them.

    tab: this one. It is filled when it is opened: that takes seconds, which the page's first search needn't wait for.
    """
    gr.HTML(
        "<p>mAP@50 of every method, in percent: for a name, how many of the best 50 images contain the object and how "
        "far up; <i>base</i> names were labelled in training, <i>novel</i> ones never. Sort here, or with the ⋮ of a "
        "heading.</p>",
        elem_classes="hint",
    )
    try:
        boards = {board.title: board for board in read_boards(folder)}
        found = read_ablations(folder)
    except DataError as error:
        gr.HTML(render("no_leaderboard", error=type(error).__name__))
        return
    first = next(iter(boards))
    with gr.Row(elem_id="board-row"):
        choice = gr.Dropdown(list(boards), value=first, label="Table", elem_id="board", scale=3)
        order = gr.Dropdown(
            _orders(boards[first]), value=_AS_IT_IS, label="Sort by, largest first", elem_id="board-order", scale=2
        )
        details = gr.Checkbox(False, label="All columns", elem_id="board-details", scale=1)
    shown_when = [tab.select, choice.change, order.change, details.change]

    # A Dataframe takes a second to make, so the tables are made when the tab is opened, and again for each change.
    @gr.render([choice, order, details], triggers=shown_when, show_progress="hidden")
    def tables(title: str, by: str, every: bool) -> None:
        board = boards.get(title, boards[first])
        _dataframe(board.ours, by, every, "Measured with FOR", "board-ours")
        note = "The paper's own numbers, not measured here: other images, another model"
        _dataframe(board.paper, by, every, note, "board-paper")

    drawings = gr.HTML(elem_id="board-bars")
    ablations = gr.HTML(elem_id="ablations")
    drawn_bars = functools.cache(lambda title: bars_html(boards[title]))
    drawn_curves = functools.cache(lambda: ablations_html(found))

    def draw(title: str) -> tuple[str, str]:
        return drawn_bars(title if title in boards else first), drawn_curves()

    def change(title: str, by: str) -> tuple[gr.Dropdown, str]:
        title = title if title in boards else first
        orders = _orders(boards[title])
        return gr.Dropdown(choices=orders, value=by if by in orders else _AS_IT_IS), drawn_bars(title)

    choice.input(change, [choice, order], [order, drawings], api_visibility="private", show_progress="hidden")
    tab.select(draw, choice, [drawings, ablations], api_visibility="private", show_progress="minimal")


def _orders(board: Board) -> list[str]:
    columns = dict.fromkeys([*main_columns(board.ours), *main_columns(board.paper)])
    return [_AS_IT_IS, *(column for column in columns if column != "source")]


def _dataframe(table: pd.DataFrame, by: str, every: bool, label: str, elem_id: str) -> None:
    """Show a table, if it has rows: numbers sort as numbers, and what wasn't measured is an empty cell."""
    if table.empty:
        return
    frame = sorted_by(table if every else main_columns(table), by)
    numeric = [pd.api.types.is_numeric_dtype(frame[column]) for column in frame.columns]
    gr.Dataframe(
        value=frame.astype(object).where(frame.notna(), None).to_numpy().tolist(),
        headers=list(frame.columns),
        datatype=["number" if is_number else "str" for is_number in numeric],
        label=label,
        interactive=False,
        wrap=False,
        max_height=520,
        elem_id=elem_id,
    )
