"""A report as one HTML page that needs nothing but itself: no network, no other file, and scripts only for comfort.

`page.html` holds styles and scripts, this module and its neighbours the content. Without scripts every number leads to
its runs by a link.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from sweeps.reporting import page_pictures, page_tables
from sweeps.reporting.charts import style_of
from sweeps.reporting.findings import Findings
from sweeps.reporting.markup import Markup, element, join
from sweeps.reporting.samples import Sample

PAGE = Path(__file__).with_name("page.html")


def to_page(findings: Findings) -> str:
    """The whole page."""
    sections = {
        "Results": page_tables.results(findings),
        "Scores and differences" if findings.differences else "Scores": page_pictures.forest(findings),
        "Learning curves": page_pictures.curves(findings),
        "Figure 2": page_pictures.figure_2(findings),
        "Sample translations": _samples(findings),
        "Runs": page_tables.runs(findings),
        "Provenance": _provenance(findings),
    }
    names = {title: title.lower().replace(" ", "-") for title, content in sections.items() if content}
    links = [element("a", title, href=f"#{name}") for title, name in names.items()]
    switch = element("button", "light / dark", id="theme", type="button")
    body = join(
        _header(findings),
        element("nav", element("div", links, switch), aria_label="sections"),
        element(
            "main", [element("section", element("h2", title), sections[title], id=names[title]) for title in names]
        ),
        element("footer", "Written by nmt report. Every number is read from run directories; none is typed."),
    )
    page = PAGE.read_text(encoding="utf-8").replace("@TITLE@", join(findings.title), 1)
    return page.replace("@BODY@", body, 1)


def _header(findings: Findings) -> Markup:
    complete, asked = findings.runs
    facts = {
        "sweep": findings.name,
        "metric": findings.metric_title,
        "runs": f"{complete} of {asked} complete" if complete < asked else f"all {asked} complete",
        "baseline": findings.baseline,
    }
    notes: list[Markup] = []
    if complete < asked:
        missing = "1 run is" if asked - complete == 1 else f"{asked - complete} runs are"
        command = element("code", findings.provenance.commands[0][0])
        notes.append(join(f"{missing} missing, as the marks of the rows say. ", command, " trains what is missing."))
    return element(
        "header",
        element("h1", findings.title),
        element(
            "ul",
            [element("li", f"{name} ", element("b", value)) for name, value in facts.items() if value],
            class_="facts",
        ),
        _conditions(findings.table.conditions),
        [element("p", note, class_="note") for note in notes],
    )


def _conditions(text: str) -> Markup:
    """In what no row ran as published: the weightiest difference, and the others on demand."""
    said, _, listed = text.removesuffix(".").partition(": ")
    differences = listed.split("; ")
    if len(differences) < 3:
        return element("p", text, class_="note") if text else Markup()
    summary = f"{said}: {differences[0]}; {differences[1]}; and {len(differences) - 2} more"
    return element(
        "details",
        element("summary", summary),
        element("ul", [element("li", one) for one in differences]),
        class_="note",
    )


def _samples(findings: Findings) -> Markup:
    samples = findings.samples
    if samples.absent:
        return element("p", f"None: {samples.absent}.", class_="lead")
    said = (
        f"Chosen by rule: {samples.rule}. Of each row the replicate that validation likes best. Words that are not in "
        "the reference at that place are underlined."
    )
    behind = [
        element(
            "li",
            f"{label}: ",
            element("code", one.run_id),
            "" if one.best_step is None else f", checkpoint of step {one.best_step:,}",
            ", decoding ",
            element("code", one.decode_id),
        )
        for label, one in samples.replicates
    ]
    return join(
        element("p", said, class_="lead"),
        [_sample(findings, sample) for sample in samples.sentences],
        element("details", element("summary", "Whose translations these are"), element("ul", behind)),
    )


def _sample(findings: Findings, sample: Sample) -> Markup:
    entries = [element("dt", "source"), element("dd", sample.source, class_="given")]
    entries += [element("dt", "reference"), element("dd", sample.reference, class_="given")]
    for output in sample.outputs:
        swatches = [element("span", class_=f"swatch {style_of(findings.number(label))}") for label in output.labels]
        named = [
            element("span", swatch, label, class_="named")
            for swatch, label in zip(swatches, output.labels, strict=True)
        ]
        entries += [element("dt", named, class_="row"), element("dd", _against(sample.reference, output.text))]
    title = element("h3", f"line {sample.line} ", element("span", f"· {sample.why}"))
    return element("article", title, element("dl", entries), class_="sample")


def _against(reference: str, text: str) -> Markup:
    """The text, with the words marked that are not in an alignment with the reference."""
    words = text.split()
    if not words:
        return element("span", "(empty)", class_="muted")
    parts: list[Markup] = []
    for operation, _, _, begin, end in difflib.SequenceMatcher(
        None, reference.split(), words, autojunk=False
    ).get_opcodes():
        if begin < end:
            piece = " ".join(words[begin:end])
            parts += [Markup(" ")] * bool(parts)
            parts.append(join(piece) if operation == "equal" else element("i", piece))
    return join(parts)


def _provenance(findings: Findings) -> Markup:
    total = findings.runs[0]
    facts: list[Markup] = []
    for fact in findings.provenance.facts:
        lines = [
            element(
                "div",
                text,
                element("span", f" ({len(runs)} of {total} runs)", class_="muted") if len(runs) < total else "",
            )
            for text, runs in fact.values
        ]
        facts += [element("dt", fact.name), element("dd", lines)]
    commands = [
        join(command, element("span", f"   # {what}", class_="muted"), "\n")
        for command, what in findings.provenance.commands
    ]
    return join(
        element("dl", facts, class_="provenance"),
        element("h3", "To repeat it"),
        element("pre", commands, tabindex="0"),
    )
