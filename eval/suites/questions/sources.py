"""The harness's index of tasks, and the data sets of the tasks from local folders or the hub."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monet.errors import ConfigError, DataError
from monet.eval.suites.questions import local_data
from monet.eval.suites.questions.catalog import TaskSpec
from monet.extras import install_command

if TYPE_CHECKING:
    from datasets import Dataset

SPLIT_KEYS = ("training_split", "validation_split", "test_split")


@contextlib.contextmanager
def quiet_harness() -> Iterator[None]:
    """Silence the harness's warnings and the progress bars of `datasets`; errors are still shown."""
    try:
        import datasets
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"{error.name} is missing, but the tasks need it. Install it: {install_command('eval')}"
        ) from None
    logger = logging.getLogger("lm_eval")
    level = logger.level
    were_off = datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not were_off:
            datasets.enable_progress_bars()


def task_manager(specs: Sequence[TaskSpec]) -> Any:
    """The harness's index of only the needed folders; an index of all folders takes many seconds.

    Raises:
        ConfigError: the installed lm-eval does not know one of the tasks.
    """
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    folders = [root / folder for folder in dict.fromkeys(spec.folder for spec in specs)]
    manager = lm_eval.tasks.TaskManager(include_defaults=False, include_path=[f for f in folders if f.is_dir()])
    if unknown := [spec.harness_name for spec in specs if spec.harness_name not in manager.task_index]:
        raise ConfigError(
            f"lm-eval {lm_eval.__version__} has no task {', '.join(unknown[:3])}; these suites were written for "
            "0.4.13, so install that version"
        )
    return manager


@dataclass(frozen=True)
class DataSet:
    """One configuration of a data set.

    Args:
        splits: names of its splits.
        read: function that reads the rows of a split.
        source: where it was read from.
    """

    splits: list[str]
    read: Callable[[str], Dataset]
    source: str


def data_names(spec: TaskSpec, config: Mapping[str, Any]) -> list[str]:
    """Folders that may hold a task's data, the hub's name first."""
    hub = [config["dataset_path"]] if "dataset_path" in config else []
    return [*hub, *spec.local_names, spec.name]


def open_data(
    spec: TaskSpec, config: Mapping[str, Any], data: Path | None, splits: Sequence[str] = ()
) -> DataSet | None:
    """A task's data set; None if a local folder does not hold it.

    Args:
        spec: the task.
        config: the task's keys in the harness.
        data: folder with data sets (`monet.eval.suites.questions.local_data`); None reads the hub or its cache.
        splits: splits to look for in addition to those of `config`.

    Raises:
        DataError: the data set is neither cached nor reachable, or a local folder cannot be read.
    """
    hub_name, part = config["dataset_path"], config.get("dataset_name")
    if data is not None:
        wanted = {*splits, *(config.get(key) for key in (*SPLIT_KEYS, "fewshot_split"))} - {None}
        found = local_data.find(data, data_names(spec, config), part, sorted(wanted), spec.subject)
        if found is None or not any(len(local_data.read(found, split, spec.subject)) for split in found.splits):
            return None
        return DataSet(list(found.splits), lambda split: local_data.read(found, split, spec.subject), str(found.folder))
    import datasets

    try:
        whole = datasets.load_dataset(hub_name, part)
    except Exception as error:  # the remedy is the same for every error of the hub's client
        raise DataError(
            f"no data for {spec.name}: {hub_name}{f' ({part})' if part else ''} is neither cached nor reachable "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); go online once, or give a folder that "
            "holds the data (--local_data)"
        ) from None
    assert isinstance(whole, datasets.DatasetDict)
    return DataSet([str(split) for split in whole], lambda split: whole[split], hub_name)


def nothing_there(specs: Sequence[TaskSpec], missing: Sequence[str], data: Path | None) -> DataError:
    """The error for tasks without data."""
    spec = next(spec for spec in specs if spec.name in missing)
    names = " or ".join(data_names(spec, {}))
    more = f" and {len(missing) - 3} others" if len(missing) > 3 else ""
    return DataError(
        f"no data for {', '.join(missing[:3])}{more} below {data}. A data set must be in a folder named as on the hub "
        f"(or {names}), its configuration in a folder in that, its splits in files like test.jsonl or "
        "validation.parquet. To use the hub, omit --local_data"
    )
