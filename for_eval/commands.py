"""What each command of `python -m for_eval` does with its arguments: calls the package, prints the outcome.

Imports stay within the functions, so that --help and a slip in the arguments don't wait for torch.
"""

import argparse
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from for_model.cli import print_json
from for_model.errors import DataError, ForError, UsageError
from for_model.files import check_writable
from for_search.commands import method_of

if TYPE_CHECKING:
    from for_model.data.dataset import Dataset
    from for_model.methods.protocol import Method


def _methods(arguments: argparse.Namespace) -> list[str]:
    """The names of `--methods`, all of them known. Raises UsageError for one that isn't, and for none."""
    from for_model.methods.registry import methods_help, parse_method

    methods = [name.strip() for name in arguments.methods.split(",") if name.strip()]
    if not methods:
        raise UsageError(f"--methods is empty: give one or several with commas, {methods_help()}")
    for name in methods:
        parse_method(name)
    return methods


def _built(arguments: argparse.Namespace, names: Sequence[str]) -> Iterator["Method"]:
    """The methods of some names in turn. Those without a trained head, which would each load the same backbone, share
    it; a head's file says itself which one it belongs to."""
    from for_model.methods.registry import METHODS, parse_method

    loaded = None
    for name in names:
        entry = METHODS.get(parse_method(name)[0])
        shares = entry is not None and not entry.trained
        method = method_of(arguments, name, loaded if shares else None)
        loaded = getattr(method, "backbone", None) if shares else loaded
        yield method


def run_leaderboard(arguments: argparse.Namespace) -> None:
    from for_eval.leaderboard.evaluate import run_method
    from for_eval.leaderboard.results import result_path, summary, write_result, write_tables
    from for_model.data.registry import load_dataset

    methods = _methods(arguments)
    check_writable(arguments.out)
    dataset = load_dataset(arguments.dataset, arguments.root, arguments.split)
    if not arguments.allow_missing:
        dataset.check_files("--allow-missing goes on without them, and counts them as skipped")
    results = []
    for method in _built(arguments, methods):
        for result, rankings in run_method(dataset, method, str(method.device), arguments.stores):
            write_result(result_path(arguments.out, result), result, rankings)
            results.append(result)
    write_tables(arguments.out)
    print(summary(results))


def run_tables(arguments: argparse.Namespace) -> None:
    from for_eval.leaderboard.paper_tables import SUITES
    from for_eval.leaderboard.run_tables import find_data, parse_tables, run_tables

    chosen = [name.strip() for name in arguments.dataset.split(",") if name.strip()]
    for name in chosen:
        if name not in SUITES:
            raise UsageError(f"no tables are made of {name!r}; expected some of {', '.join(SUITES)}")
    suites = [SUITES[name] for name in chosen or SUITES]
    names = parse_tables(suites, arguments.only)
    check_writable(arguments.out)
    failed = 0
    for suite in suites:
        if chosen and not set(names) & set(suite.tables):
            continue
        try:
            found = find_data(suite, arguments.data)
        except DataError as error:
            if chosen:
                raise
            print(f"{suite.dataset:<10} left out: {error}", flush=True)  # all that there is data of are made
            continue
        for verdict in run_tables(
            suite,
            names,
            arguments.out,
            *found,
            seeds=arguments.seeds,
            device=arguments.device,
            accept=arguments.accept,
        ):
            print(f"{verdict.dataset:<10} {verdict.table:<10} seed {verdict.seed}  {verdict.line}", flush=True)
            failed += verdict.ok is False
    if failed and not arguments.accept:
        raise ForError(
            f"{failed} rows differ from the committed ones by more than the tolerance; --accept lets the new ones stay"
        )


def run_calibration(arguments: argparse.Namespace) -> None:
    from for_eval.queries import calibration_study as calibration
    from for_eval.queries.asked import ask
    from for_model.data.registry import load_dataset

    if arguments.fit_split is None and (arguments.package or arguments.there):
        raise UsageError("--package and --there are about what is fitted: say to which split with --fit-split")
    check_writable(arguments.out)
    results = []
    more = None
    if arguments.there is not None:
        name, split, root = arguments.there
        more = load_dataset(name, Path(root), split)
    for method, to_measure, to_fit in _studied(arguments):
        fitted, also = (None if each is None else ask(each, method, to_fit=True) for each in (to_fit, more))
        results.append(calibration.study_calibration(fitted, ask(to_measure, method, to_fit=False), also))
        print(calibration.CALIBRATION.write(arguments.out, results[-1]), flush=True)
    if arguments.package:
        calibration.write_numbers(results)
        print(calibration.NUMBERS_FILE)
    print(calibration.CALIBRATION.write_table(arguments.out))
    if arguments.figure is not None:
        from for_eval.queries.reliability_figure import write_reliability_figure

        write_reliability_figure(arguments.figure, results)
        print(arguments.figure)


def run_combinations(arguments: argparse.Namespace) -> None:
    from for_eval.queries.asked import ask
    from for_eval.queries.combination_study import COMBINATIONS, study_combinations

    check_writable(arguments.out)
    for method, to_measure, _ in _studied(arguments):
        result = study_combinations(ask(to_measure, method, to_fit=False))
        print(COMBINATIONS.write(arguments.out, result), flush=True)
    print(COMBINATIONS.write_table(arguments.out))


def run_sketches(arguments: argparse.Namespace) -> None:
    from for_eval.refinement.sketch_table import SKETCHES, study_sketches

    check_writable(arguments.out)
    for method, to_measure, to_fit in _studied(arguments):
        assert to_fit is not None, "--fit-split is required"
        result = study_sketches(method, to_fit, to_measure, arguments.texts, arguments.stores)
        print(SKETCHES.write(arguments.out, result), flush=True)
    print(SKETCHES.write_table(arguments.out))


def _studied(arguments: argparse.Namespace) -> Iterator[tuple["Method", "Dataset", "Dataset | None"]]:
    """Each method of a study, the split that is measured and, where there is one, the split that is fitted to."""
    from for_model.data.registry import load_dataset

    methods = _methods(arguments)
    fit_split = getattr(arguments, "fit_split", None)
    dataset = load_dataset(arguments.dataset, arguments.root, arguments.split)
    to_fit = None if fit_split is None else load_dataset(arguments.dataset, arguments.root, fit_split)
    for method in _built(arguments, methods):
        yield method, dataset, to_fit


def run_table(arguments: argparse.Namespace) -> None:
    from for_eval.leaderboard.results import write_tables
    from for_eval.leaderboard.run_tables import write_table_csvs
    from for_eval.queries.calibration_study import CALIBRATION
    from for_eval.queries.combination_study import COMBINATIONS
    from for_eval.refinement.ceiling import CEILING
    from for_eval.refinement.concept_scores import CONCEPT_SCORES
    from for_eval.refinement.loop import LOOP
    from for_eval.refinement.marks_needed import MARKS_NEEDED
    from for_eval.refinement.refine_table import REFINE
    from for_eval.refinement.sketch_table import SKETCHES

    paths = [*write_tables(arguments.out), *write_table_csvs(arguments.out)]
    studies = [
        study.write_table(arguments.out)
        for study in (CALIBRATION, COMBINATIONS, REFINE, MARKS_NEEDED, CEILING, CONCEPT_SCORES, LOOP, SKETCHES)
        if study.folder(arguments.out).is_dir()
    ]
    if arguments.with_paper:
        from for_eval.leaderboard.paper_rows import read_paper, with_paper

        print(with_paper(paths, read_paper()))
    else:
        print(*paths, *studies, sep="\n")


def run_figure(arguments: argparse.Namespace) -> None:
    from for_eval.leaderboard.embeddings_figure import write_embeddings_figure

    write_embeddings_figure(arguments.file, arguments.out)
    print(arguments.file)


def run_classes(arguments: argparse.Namespace) -> None:
    from for_model.data.classes import CLASSES_FILE, write_classes
    from for_model.data.nuimages import read_split

    out = arguments.out or arguments.root.expanduser() / CLASSES_FILE
    settings = {"--root": arguments.root, "--split": arguments.split, "--novel-below": arguments.novel_below}
    words = [str(word) for pair in {**settings, "--out": out}.items() for word in pair]
    command = shlex.join(["python", "-m", "for_eval", "classes", *words])
    dataset = read_split(arguments.root, arguments.split)
    groups = list(write_classes(out, dataset, command, arguments.novel_below).values())
    print(f"{out}: " + ", ".join(f"{groups.count(group)} {group}" for group in ("base", "novel", "other")))


def run_fetch(arguments: argparse.Namespace) -> None:
    from for_eval.download.check import check
    from for_eval.download.fetch import choose_splits, describe, fetch
    from for_eval.download.sources import PARTS, SOURCES

    source = SOURCES.get(arguments.name)
    if source is None:
        raise UsageError(f"unknown dataset {arguments.name!r}: choose one of {', '.join(SOURCES)}")
    root, splits = arguments.root.expanduser(), choose_splits(source, arguments.splits)
    parts = (arguments.only,) if arguments.only else PARTS
    if not arguments.check:
        print("\n".join(describe(source, root, splits, parts)), flush=True)
        if arguments.dry_run:
            return
        fetch(source, root, splits, parts, arguments.keep)
    failed = 0
    for verdict in check(source, root, splits, parts):
        print(verdict.line, flush=True)
        failed += not verdict.ok
    if failed:
        raise DataError(f"{source.title} in {root} is not as published, see the lines with FAIL: {failed}")


def run_refine(arguments: argparse.Namespace) -> None:
    from for_eval.refinement.ceiling import CEILING, measure_ceiling
    from for_eval.refinement.concept_scores import CONCEPT_SCORES, measure_concept
    from for_eval.refinement.marks_needed import MARKS_NEEDED, measure_marks_needed
    from for_eval.refinement.refine_table import REFINE, measure_refiners, parse_refiners, refine_summary
    from for_model.data.registry import load_dataset

    methods = _methods(arguments)
    refiners = parse_refiners(arguments.refiners)
    check_writable(arguments.out)
    dataset = load_dataset(arguments.dataset, arguments.root, arguments.split)
    if arguments.concept is not None:
        for name in methods:
            measure_concept(
                dataset, method_of(arguments, name), arguments.concept, arguments.label, arguments.out, arguments.stores
            )
        print(CONCEPT_SCORES.write_table(arguments.out).read_text(), end="")
        return
    others = {
        MARKS_NEEDED: (arguments.marks_needed, measure_marks_needed),
        CEILING: (arguments.ceiling, measure_ceiling),
    }
    for study, (asked, measure) in others.items():
        if asked:
            for name in methods:
                measure(dataset, method_of(arguments, name), arguments.out, arguments.stores)
            print(study.write_table(arguments.out).read_text(), end="")
            return
    paths = []
    for name in methods:
        for path in measure_refiners(dataset, method_of(arguments, name), refiners, arguments.out, arguments.stores):
            paths.append(path)
            REFINE.write_table(arguments.out)
    print(refine_summary(paths))


def run_loop(arguments: argparse.Namespace) -> None:
    from for_eval.refinement.loop import LOOP, measure_loop
    from for_model.data.registry import load_dataset
    from for_model.methods.clip_method import ClipMethod
    from for_model.training.config import load_config

    config = load_config(arguments.config, arguments.settings)
    check_writable(arguments.out)
    catalogue = load_dataset(arguments.dataset, arguments.root, arguments.split)
    unseen = load_dataset(arguments.dataset, arguments.root, arguments.unseen)
    if (catalogue.image_root, catalogue.split) == (unseen.image_root, unseen.split):
        raise UsageError(f"--split and --unseen are both {unseen.split}: score on images that weren't marked")
    method = method_of(arguments, arguments.method)
    if not isinstance(method, ClipMethod):
        raise UsageError(f"no head is trained on {arguments.method}: search with a method on a backbone")
    names = [name.strip() for name in arguments.names.split(",") if name.strip()]
    judged = not arguments.all_judged
    measure_loop(catalogue, unseen, method, config, names, arguments.rounds, arguments.out, judged)
    print(LOOP.write_table(arguments.out).read_text(), end="")


def run_compare(arguments: argparse.Namespace) -> None:
    from for_eval.leaderboard.comparison_report import figure_format, name_of, to_text, write_figure
    from for_eval.leaderboard.results import read_ranked
    from for_eval.metrics.paired_comparison import compare_results

    if arguments.out is not None:
        figure_format(arguments.out)
    (result_a, a), (result_b, b) = read_ranked(arguments.a), read_ranked(arguments.b)
    comparison = compare_results(a, b, arguments.resamples, arguments.seed, arguments.level)
    names = name_of(result_a), name_of(result_b)
    if arguments.out is not None:
        write_figure(arguments.out, comparison, *names)
    if arguments.json:
        print_json({"a": names[0], "b": names[1], **comparison.to_json()}, indent=1)
    else:
        print(to_text(comparison, *names))
