#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""What the bench measured: medians, ratios, a table, a check, and the pages of the documentation.

Reads lines of JSON, each of them one quantity of one subject in one case:

  {"series": "receive", "case": {"buffer": 4096}, "subject": "builtin",
   "unit": "instructions", "per": "MiB", "values": [437506, 437202]}

Ratios are those of the module to another subject, or of the patched kernel to the unpatched one: less than
1 is better. For speeds they are turned around.
"""

import argparse
import collections
import json
import math
import pathlib
import statistics
import sys
import textwrap

MODULE = "devmem_provider"
BUILTIN = "builtin"
# The kernel with what the module needs, where the seam is measured.
PATCHED = "patched"
# The module first, then what it is to be a drop-in for.
ORDER = [MODULE, BUILTIN, PATCHED]
# More of these is better.
SPEEDS = ("MiB/s",)
# What does not depend on the machine.
EXACT = ("instructions", "calls", "bytes")
# How much worse a ratio may become, and how much better without being recorded anew.
TOLERANCE = 0.2


class Quantity:
    """The subjects of one series, case, unit and kind, side by side."""

    def __init__(self, series, case, unit, per):
        self.series, self.case, self.unit, self.per = series, case, unit, per
        self.subjects = {}

    def name(self):
        return " ".join([self.series, *(f"{k}={v}" for k, v in self.case.items()),
                         f"[{self.unit}/{self.per}]"])

    def median(self, subject):
        return statistics.median(self.subjects[subject])

    def spread(self, subject):
        """Half of what lies between the quartiles, for the median."""
        values = self.subjects[subject]
        median = self.median(subject)
        if len(values) < 2 or not median:
            return 0.0
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return (high - low) / 2 / median

    def ours(self):
        """What is compared with the others, if it was measured."""
        return next((s for s in (MODULE, PATCHED) if s in self.subjects), None)

    def ratio(self, other):
        """Our median to another's, turned around for speeds: less is better."""
        ours, theirs = self.median(self.ours()), self.median(other)
        if self.unit in SPEEDS:
            ours, theirs = theirs, ours
        if theirs == 0:
            return 1.0 if ours == 0 else math.inf
        return ours / theirs

    def others(self):
        """The subjects that ours is compared with."""
        return [s for s in self.ordered() if s != self.ours()] if self.ours() else []

    def ordered(self):
        rest = [s for s in self.subjects if s not in ORDER]
        return [s for s in ORDER if s in self.subjects] + rest


def read(lines):
    """The quantities in lines of JSON, in the order in which they come."""
    quantities = {}
    for line in lines:
        if not line.strip():
            continue
        r = json.loads(line)
        if not r["values"] or not all(math.isfinite(v) for v in r["values"]):
            raise ValueError(f"no values: {line.strip()}")
        key = (r["series"], json.dumps(r["case"], sort_keys=True), r["unit"], r["per"])
        q = quantities.setdefault(key, Quantity(r["series"], r["case"], r["unit"], r["per"]))
        if r["subject"] in q.subjects:
            raise ValueError(f"measured twice: {line.strip()}")
        q.subjects[r["subject"]] = r["values"]
    return list(quantities.values())


def read_files(paths):
    return read(line for path in paths for line in path.read_text().splitlines())


def number(value):
    """With as many digits as say something."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3g}"


def groups(quantities):
    """Quantities that make a table: of one series, unit and kind, with parameters of the same names."""
    tables = {}
    for q in quantities:
        tables.setdefault((q.series, q.unit, q.per, tuple(sorted(q.case))), []).append(q)
    return tables


def parameters(quantities):
    """Names of the parameters that differ, and those that do not with their values."""
    names = list(quantities[0].case)
    varying = [n for n in names if len({str(q.case[n]) for q in quantities}) > 1]
    fixed = {n: quantities[0].case[n] for n in names if n not in varying}
    return varying, fixed


def rows_of(quantities):
    """Heading and rows of a table."""
    varying, _ = parameters(quantities)
    subjects = list(dict.fromkeys(s for q in quantities for s in q.ordered()))
    others = list(dict.fromkeys(s for q in quantities for s in q.others()))
    heading = [*varying, *subjects, *(f"to {s}" for s in others)]
    rows = []
    for q in quantities:
        row = [str(q.case[n]) for n in varying]
        for s in subjects:
            if s in q.subjects:
                spread = q.spread(s)
                mark = f" ±{spread * 100:.0f} %" if spread >= 0.005 else ""
                row.append(number(q.median(s)) + mark)
            else:
                row.append("")
        row += [number(q.ratio(s)) if s in q.others() else "" for s in others]
        rows.append(row)
    return heading, rows


def title_of(series, unit, per, quantities):
    fixed = ", ".join(f"{k} {v}" for k, v in parameters(quantities)[1].items())
    what = unit if unit in SPEEDS else f"{unit} per {per}"
    return f"{series}: {what}" + (f" ({fixed})" if fixed else "")


def print_table(title, heading, rows, out):
    widths = [max(len(row[i]) for row in [heading, *rows]) for i in range(len(heading))]
    print(f"\n{title}", file=out)
    for row in [heading, *rows]:
        print("  " + "  ".join(c.rjust(w) for c, w in zip(row, widths)), file=out)


def print_tables(quantities, targets, out):
    for (series, unit, per, _), table in groups(quantities).items():
        print_table(title_of(series, unit, per, table), *rows_of(table), out)
    heading, rows = target_rows(targets, quantities)
    if rows:
        print_table("targets", heading, rows, out)


def ratios(quantities, unchecked=()):
    """The ratios that are the same on every machine and in every boot, by name."""
    return {
        f"{q.name()} to {other}": q.ratio(other)
        for q in quantities
        if q.unit in EXACT and not any(matches(q, wanted) for wanted in unchecked)
        for other in q.others()
    }


def check(measured, expected):
    """Judges each ratio: (name, reason why it fails or None, remark or None)."""
    verdicts = []
    for name in [*expected, *(n for n in measured if n not in expected)]:
        failure = remark = None
        if name not in measured:
            failure = "was not measured"
        elif name not in expected:
            failure = f"is {measured[name]:.4g}, and nothing is recorded to compare it with"
        else:
            now, before = measured[name], expected[name]
            if now > before * (1 + TOLERANCE):
                failure = f"is {now:.4g}, recorded is {before:.4g}"
            elif now < before / (1 + TOLERANCE):
                remark = f"{name} is {now:.4g}, recorded is {before:.4g}: record it anew"
        verdicts.append((name, failure, remark))
    return verdicts


def print_ktap(verdicts, out):
    """Prints verdicts as KTAP; whether all passed."""
    print("KTAP version 1", file=out)
    print(f"1..{len(verdicts)}", file=out)
    for i, (name, failure, remark) in enumerate(verdicts, 1):
        if failure:
            print(f"# {failure}", file=out)
        if remark:
            print(f"# {remark}", file=out)
        print(f"{'not ok' if failure else 'ok'} {i} {name}", file=out)
    return not any(failure for _, failure, _ in verdicts)


def matches(quantity, wanted):
    """Whether it is of this series, unit and kind, as far as they are told, and its case has these parameters."""
    return (all(getattr(quantity, n) == wanted[n] for n in ("series", "unit", "per") if n in wanted)
            and wanted["case"].items() <= quantity.case.items())


def select(quantities, wanted):
    return [q for q in quantities if matches(q, wanted)]


def reached(target, quantities):
    """How far a target is reached, at worst, or None if that was not measured.

    Cases that the target selects are compared with another subject (`to`), or with the same
    case but for some parameters (`to_case`); otherwise it is the figure itself that counts.
    """
    found = []
    for q in select(quantities, target):
        if MODULE not in q.subjects:
            continue
        if "to" in target:
            if target["to"] in q.subjects:
                found.append(q.ratio(target["to"]))
            continue
        if "to_case" not in target:
            found.append(q.median(MODULE))
            continue
        for other in select(quantities, {**target, "case": {**q.case, **target["to_case"]}}):
            if MODULE in other.subjects and other.median(MODULE):
                found.append(q.median(MODULE) / other.median(MODULE))
    return max(found, default=None)


def target_rows(targets, quantities):
    """Heading and rows of a table of targets, those that were measured."""
    rows = []
    for target in targets:
        ratio = reached(target, quantities)
        if ratio is not None:
            met = "yes" if ratio <= target["at_most"] else "no"
            rows.append([target["name"], number(target["at_most"]), number(ratio), met])
    return ["Target", "at most", "measured", "met"], rows


def write_json(path, data):
    """A list has a line for each of its members, a dictionary for each key."""
    if isinstance(data, list):
        lines = ",\n".join(json.dumps(member, ensure_ascii=False) for member in data)
        text = f"[\n{lines}\n]"
    else:
        text = json.dumps(data, indent=1, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def rst_table(heading, rows):
    """A simple table; a cell that is empty would join the row before."""
    rows = [[c or "\\ " if i == 0 else c or "--" for i, c in enumerate(row)] for row in rows]
    widths = [max(len(row[i]) for row in [heading, *rows]) for i in range(len(heading))]
    rule = " ".join("=" * w for w in widths)
    lines = [" ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip()
             for row in [heading, *rows]]
    return [rule, lines[0], rule, *lines[1:], rule]


def write_rst(path, quantities, targets):
    """Tables of all quantities, for a page to include."""
    lines = [".. SPDX-License-Identifier: GPL-2.0", ".. made by scripts/bench.py", ""]
    heading, rows = target_rows(targets, quantities)
    if rows:
        lines += [*rst_table(heading, rows), ""]
    for (series, unit, per, _), table in groups(quantities).items():
        lines += [f"**{title_of(series, unit, per, table)}**", "", *rst_table(*rows_of(table)), ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))


def usual_values(varying, quantities):
    """Values that most of the cases have, of parameters that vary."""
    usual = {}
    for name in varying:
        value, count = collections.Counter(q.case[name] for q in quantities).most_common(1)[0]
        if count > len(quantities) / 2:
            usual[name] = value
    return usual


def label(case, varying, usual):
    """What is special about a case."""
    special = [f"{k} {case[k]}" for k in varying if case[k] != usual.get(k)]
    return ", ".join(special) or "as usual"


def plot(path, title, quantities):
    """Bars of the subjects, a group for each case."""
    import matplotlib

    matplotlib.use("svg")
    # The same numbers make the same file.
    matplotlib.rcParams["svg.hashsalt"] = "devmem"
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    varying, _ = parameters(quantities)
    usual = usual_values(varying, quantities)
    subjects = list(dict.fromkeys(s for q in quantities for s in q.ordered()))
    figure, axes = pyplot.subplots(figsize=(10, 1.2 + 0.2 * len(quantities) * (len(subjects) + 1)))
    height = 1 / (len(subjects) + 1)
    for i, subject in enumerate(subjects):
        present = [(n, q.median(subject)) for n, q in enumerate(quantities) if subject in q.subjects]
        bars = axes.barh([n + i * height for n, _ in present], [v for _, v in present], height, label=subject)
        axes.bar_label(bars, [number(v) for _, v in present], padding=3, fontsize=7)
    axes.set_yticks([n + height * (len(subjects) - 1) / 2 for n in range(len(quantities))],
                    [label(q.case, varying, usual) for q in quantities], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.1, y=0.01)
    values = [q.median(s) for q in quantities for s in q.subjects if q.median(s) > 0]
    if values and max(values) > 30 * min(values):
        axes.set_xscale("log")
        # Of bars on such an axis only the ends say something.
        axes.set_xlim(left=min(values) / 3)
    if usual:
        title += "; unless said, " + ", ".join(f"{k} {v}" for k, v in usual.items())
    figure.suptitle(textwrap.fill(title, 120), x=0.01, ha="left", fontsize=9)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=len(subjects),
                borderaxespad=2.5)
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    # matplotlib pads lines.
    text = "\n".join(line.rstrip() for line in path.read_text().splitlines())
    head, _, rest = text.partition("\n")
    path.write_text(f"{head}\n<!-- SPDX-License-Identifier: GPL-2.0 -->\n{rest}\n")


def is_plotted(case):
    """Whole costs are, not their parts; of what holds many cases, those that tell most."""
    wanted = {"phase": ("all",), "part": ("alloc + release",), "fill": ("empty", "half"), "queues": (1,)}
    if "part" in case and case.get("op") != "direct":
        return False
    return all(case.get(name, values[0]) in values for name, values in wanted.items())


def write_plots(directory, mode, quantities):
    """A plot for each series and kind of cost."""
    wanted = [q for q in quantities
              if q.unit in ("instructions", "ns", *SPEEDS) and is_plotted(q.case)]
    by_name = {}
    for (series, unit, per, _), table in groups(wanted).items():
        name = f"{mode}-{series}-{per}".replace(" ", "-").replace("/", "-").replace(",", "")
        by_name.setdefault(name, []).append((title_of(series, unit, per, table), table))
    for name, tables in by_name.items():
        for i, (title, table) in enumerate(tables):
            suffix = f"-{i + 1}" if len(tables) > 1 else ""
            plot(directory / f"{name}{suffix}.svg", title, table)


def write_page(directory, mode, quantities, targets):
    """What the page about performance shows: the data, tables and plots."""
    data = [
        {"series": q.series, "case": q.case, "unit": q.unit, "per": q.per,
         "values": q.subjects}
        for q in quantities
    ]
    write_json(directory / f"{mode}.json", data)
    write_rst(directory / f"{mode}.rst", quantities, targets)
    for old in directory.glob(f"{mode}-*.svg"):
        old.unlink()
    write_plots(directory, mode, quantities)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    sub = {
        name: commands.add_parser(name, help=text)
        for name, text in (
            ("table", "prints medians, spread and ratios"),
            ("check", "compares ratios with recorded ones, and prints KTAP"),
            ("record", "records ratios"),
            ("page", "writes data, tables and plots"),
        )
    }
    for name in ("check", "record"):
        sub[name].add_argument("--expected", type=pathlib.Path, required=True)
        sub[name].add_argument("--unchecked", type=pathlib.Path, required=True,
                               help="what is not the same in every boot")
    for name in ("table", "page"):
        sub[name].add_argument("--targets", type=pathlib.Path, required=True)
    sub["page"].add_argument("--directory", type=pathlib.Path, required=True)
    sub["page"].add_argument("--mode", required=True, help="what the files' names begin with")
    for command in sub.values():
        command.add_argument("files", type=pathlib.Path, nargs="+", help="lines of JSON")
    args = parser.parse_args()

    quantities = read_files(args.files)
    if not quantities:
        sys.exit("nothing was measured")
    if args.command == "table":
        print_tables(quantities, json.loads(args.targets.read_text()), sys.stdout)
    elif args.command == "record":
        recorded = ratios(quantities, json.loads(args.unchecked.read_text()))
        write_json(args.expected, {k: float(f"{v:.4g}") for k, v in recorded.items()})
    elif args.command == "page":
        write_page(args.directory, args.mode, quantities, json.loads(args.targets.read_text()))
    else:
        measured = ratios(quantities, json.loads(args.unchecked.read_text()))
        if not print_ktap(check(measured, json.loads(args.expected.read_text())), sys.stdout):
            sys.exit(1)


if __name__ == "__main__":
    main()
