"""The registry of data sources."""

import inspect
from importlib import import_module

import pytest

from googlenet.data.sources import SOURCES, LoadOptions, absolute_source, describe_sources, load_dataset, load_source


@pytest.mark.parametrize("name", SOURCES)
def test_every_module_has_load(name: str) -> None:
    load = getattr(import_module(SOURCES[name].module), SOURCES[name].loader)
    assert len(inspect.signature(load).parameters) == 2
    assert all(form.partition(":")[0] == name for form in SOURCES[name].usage)


@pytest.mark.parametrize(
    "source", ["", "nothing", "folder", "folder:", "fashion-mnist:x", "shards:", "imagenet", "table:"]
)
def test_unknown_sources_list_the_known_ones(source: str) -> None:
    with pytest.raises(ValueError, match="unknown data source") as raised:
        load_dataset(source)
    assert describe_sources("classification") in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("source", "kind"), [("coco:x", "classification"), ("folder:x", "detection")])
def test_sources_of_another_task_are_an_error(source: str, kind: str) -> None:
    with pytest.raises(ValueError, match=rf"{source}: a data source for task: (?!{kind}).*; for {kind} use"):
        load_source(source, LoadOptions(), kind)


def test_paths_become_absolute() -> None:
    assert absolute_source("folder:a", "/r") == "folder:/r/a"
    assert absolute_source("coco:/a/b.json", "/r") == "coco:/a/b.json"
    assert absolute_source("shards:a/{0..1}.tar::https://x/y.tar::pipe:cat z", "/r") == (
        "shards:/r/a/{0..1}.tar::https://x/y.tar::pipe:cat z"
    )
    for source in ("fashion-mnist", "scenes:train=4", "unknown:a", "folder:"):
        assert absolute_source(source, "/r") == source


def test_help_lists_every_form() -> None:
    text = describe_sources("classification") + describe_sources("detection")
    assert all(form in text for source in SOURCES.values() for form in source.usage)
