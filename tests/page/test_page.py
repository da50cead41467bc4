"""The HTML report: its figures, what it escapes, and that it is used in a browser by click and by keyboard."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models import MODELS
from requirements import REQUIRED, library

import tracecompile
from tracecompile.page import figures_of, page

HOSTILE = "</script><b onclick=alert(1)>&\"'"


@pytest.fixture(scope="module")
def shown() -> tuple[Any, dict[str, Any], str]:
    """A converted network, the figures of its page, and the page, under a name that would break it."""
    torch.manual_seed(0)
    case = MODELS["two_recurrent_layers"]
    net = tracecompile.convert(case.factory(), case.example_inputs(5, 2), bins=2, backend="eager")
    inputs = case.make_inputs(12, 3)
    figures = figures_of(net, inputs if isinstance(inputs, tuple) else (inputs,), title=HOSTILE)
    return net, figures, page(figures)


def embedded(text: str) -> Any:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


def test_the_data_of_the_page_are_the_report(shown: tuple[Any, dict[str, Any], str]) -> None:
    net, figures, text = shown
    assert embedded(text) == json.loads(json.dumps(figures))
    assert embedded(text)["report"] == json.loads(json.dumps(net.report.to_dict()))
    assert [layer["name"] for layer in figures["layers"]] == [layer.name for layer in net.report.layers]
    assert {row["parameter"] for row in figures["fidelity"]["rows"]} == set(net.report.parameters)


def test_the_network_stays_as_it_was(shown: tuple[Any, dict[str, Any], str]) -> None:
    net, _, _ = shown
    assert net.report.execution is None
    assert all(parameter.grad is None for parameter in net.parameters())


def test_no_text_breaks_the_page(shown: tuple[Any, dict[str, Any], str]) -> None:
    _, _, text = shown
    assert HOSTILE not in text
    assert "<b onclick" not in text
    assert text.count("</script>") == 2, "the data and the script"
    assert not re.search(r"(src|href)=\"(?!#|data:,)", text), "nothing is loaded"


def test_a_layer_has_its_source_its_stages_and_its_rates(shown: tuple[Any, dict[str, Any], str]) -> None:
    _, figures, _ = shown
    for layer in figures["layers"]:
        assert layer["places"], layer["name"]
        assert any("def " in stage["text"] for stage in layer["stages"]), layer["name"]
        if layer["kind"] == "spiking":
            assert layer["activity"]["rate"] == pytest.approx(sum(layer["activity"]["over_time"]) / 12)
    assert any(edge["delay"] for edge in figures["edges"])
    memory = figures["memory"]
    assert memory["through_time"][-1] > 1000 * memory["through_time"][0]
    assert len(set(memory["converted"])) == 1


@pytest.mark.parametrize("rule", ["exact", "bptt"])
def test_other_rules_have_a_page_too(rule: Any) -> None:
    case = MODELS["recurrent_loop"]
    net = tracecompile.convert(case.factory(), case.example_inputs(5, 2), rule=rule, backend="eager")
    inputs = case.make_inputs(6, 2)
    figures = figures_of(net, inputs if isinstance(inputs, tuple) else (inputs,))
    assert all(row["cosine"] == pytest.approx(1, abs=1e-6) for row in figures["fidelity"]["rows"])
    assert figures["approximations"] == []
    assert "Nothing: values and gradients are those of the model." in page(figures)
    without = figures_of(net)
    assert (without["fidelity"], without["activity"]["steps"]) == (None, 0)
    assert "No input was given" in page(without)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    library("playwright")
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        if os.environ.get(REQUIRED):
            pytest.fail("chromium is not on the path")
        pytest.skip("chromium is not on the path")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.mark.libraries
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 375)])
def test_the_page_in_a_browser(
    browser: Any, shown: tuple[Any, dict[str, Any], str], tmp_path: Path, scheme: str, width: int
) -> None:
    net, figures, text = shown
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    said: list[str] = []
    asked: list[str] = []
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda fault: said.append(str(fault)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    assert tab.title() == HOSTILE
    assert tab.evaluate("JSON.parse(document.getElementById('data').textContent).report") == net.report.to_dict()
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it is scrolled sideways"

    layers = tab.locator("details.layer")
    assert layers.count() == len(figures["layers"])
    assert not layers.nth(0).evaluate("layer => layer.open")
    tab.locator("a.node").nth(0).click()
    assert layers.nth(0).evaluate("layer => layer.open")
    tab.locator("a.node").nth(1).focus()
    tab.keyboard.press("Enter")
    assert layers.nth(1).evaluate("layer => layer.open")
    assert layers.nth(1).locator("summary").first.evaluate("head => head === document.activeElement")
    tab.keyboard.press("Space")
    assert not layers.nth(1).evaluate("layer => layer.open")

    cosines = tab.locator("#gradients tbody tr td:nth-last-child(2)").all_inner_texts()
    assert cosines == [f"{row['cosine']:.4f}" for row in figures["fidelity"]["rows"]]
    ground = "getComputedStyle(document.body).backgroundColor"
    before = tab.evaluate(ground)
    tab.locator("#theme").click()
    assert tab.evaluate(ground) != before
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    tab.close()
