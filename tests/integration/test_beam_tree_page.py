"""The page of `nmt translate tree=...` in a real browser: what is drawn, and what pointing, zooming and choosing do."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
from chromium import FLAGS

from nmt.data.tokenizer import WhitespaceTokenizer
from nmt.data.vocabulary import Vocabulary
from nmt.evaluation.beam_tree import beam_tree
from nmt.evaluation.translator import TranslatedLine, Translation
from nmt.search.beam import Hypothesis
from nmt.search.trace import SearchTrace

WORDS = ["the", "<b>new</b>", "tower"]
THE, NEW, TOWER, END = 3, 4, 5, 2

# Acts as a person would, then leaves what it saw in the document.
ACTIONS = """
const seen = {};
const at = (step, rank) => nodes.find(node => node.step === step && node.rank === rank);
const count = what => document.querySelectorAll(what).length;
seen.nodes = count(".node");
seen.best = nodes.filter(node => node.group.classList.contains("best")).map(node => node.token);
at(1, 1).group.dispatchEvent(new PointerEvent("pointerenter", {clientX: 300, clientY: 300}));
seen.tip = tip.innerText;
seen.path = nodes.filter(node => node.group.classList.contains("path")).map(node => node.token);
at(1, 1).group.dispatchEvent(new PointerEvent("pointerleave"));
seen.left = [tip.style.display, count(".node.path")];
const scale = place.scale, x = place.x;
canvas.dispatchEvent(new WheelEvent("wheel", {deltaY: -300, bubbles: true, cancelable: true}));
seen.zoomed = place.scale > scale;
place.x = x;
canvas.dispatchEvent(new PointerEvent("pointerdown", {clientX: 10, clientY: 10, bubbles: true}));
dispatchEvent(new PointerEvent("pointermove", {clientX: 60, clientY: 10}));
dispatchEvent(new PointerEvent("pointerup"));
seen.dragged = place.x - x;
document.querySelectorAll("dd.output")[1].click();
seen.second = nodes.filter(node => node.group.classList.contains("best")).map(node => node.token);
byId("alive").click();
seen.alive = nodes.length;
byId("layout").value = "tree";
byId("layout").dispatchEvent(new Event("change"));
seen.apart = new Set(nodes.map(node => `${node.step} ${node.y}`)).size;
dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
seen.sentence = byId("sentence").selectedOptions[0].textContent;
seen.nothingExecuted = count("dl b") + count("option b") + count("svg b");
document.body.textContent = JSON.stringify(seen);
"""


def search(line: str) -> TranslatedLine:
    """`the` ends in the second step and keeps its place; `new tower` ends in the third."""
    trace = SearchTrace(
        tokens=np.array([[THE, NEW], [END, TOWER], [END, END]]),
        parents=np.array([[0, 0], [0, 1], [0, 1]]),
        scores=np.array([[-0.5, -1.0], [-0.7, -1.2], [-0.7, -1.3]]),
        log_probabilities=np.array([[-0.5, -1.0], [-0.7, -1.2], [-0.7, -1.3]]),
        outputs=((2, 0), (2, 1)),
    )
    found = [
        Translation("the", Hypothesis((THE,), -0.7, -0.7)),
        Translation("new tower", Hypothesis((NEW, TOWER), -1.3, -1.3)),
    ]
    return TranslatedLine(line, line.split(), found, trace)


def test_a_search_can_be_looked_through(tmp_path: Path, chromium: str) -> None:
    page = tmp_path / "tree.html"
    with beam_tree(str(page), 5, WhitespaceTokenizer(Vocabulary(WORDS, 6))) as tree:
        tree.add(0, search("der <b>neue</b> Turm </script>"))
        tree.add(3, search("noch einer"))
    page.write_text(page.read_text().replace("</body>", f"<script>{ACTIONS}</script></body>"))
    command = [chromium, "--headless", *FLAGS, f"--user-data-dir={tmp_path / 'profile'}"]
    shown = subprocess.run(
        [*command, "--window-size=1200,700", "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=300
    ).stdout
    match = re.search(r"<body[^>]*>(\{.*\})\s*</body>", shown, re.DOTALL)
    assert match, shown
    seen = json.loads(match[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert seen["nodes"] == 6
    assert seen["best"] == ["the", "</s>", "</s>"]
    assert seen["path"] == ["<b>new</b>", "tower"]
    assert seen["tip"].split() == [
        "tower", "step,", "place", "2,", "2", "token", "probability", "0.819", "score", "-1.2000", "log-probability",
        "-1.2000", "<b>new</b>", "tower",
    ]  # fmt: skip
    assert seen["left"] == ["none", 0]
    assert seen["zoomed"] and seen["dragged"] == 50
    assert seen["second"] == ["<b>new</b>", "tower", "</s>"]
    assert (seen["alive"], seen["apart"]) == (6, 6)
    assert seen["sentence"] == "3: noch einer"
    assert seen["nothingExecuted"] == 0
