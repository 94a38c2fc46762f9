#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of bench.py: a ratio that has become worse must not pass."""

import io
import json
import pathlib
import tempfile
import unittest

import bench
import ktap


def line(subject, values, unit="instructions", series="receive", **case):
    return json.dumps({"series": series, "case": case, "subject": subject, "unit": unit,
                       "per": "MiB", "values": values})


def ratios(module, builtin, **more):
    return bench.ratios(bench.read([line("devmem_provider", module, **more),
                                    line("builtin", builtin, **more)]))


class Reading(unittest.TestCase):
    def test_subjects_of_a_case_are_put_side_by_side(self):
        quantities = bench.read([line("builtin", [4], size=1), line("devmem_provider", [1], size=1),
                                 line("builtin", [8], size=2), ""])
        self.assertEqual([q.case for q in quantities], [{"size": 1}, {"size": 2}])
        self.assertEqual(quantities[0].ordered(), ["devmem_provider", "builtin"])
        self.assertEqual(quantities[0].ratio("builtin"), 0.25)
        self.assertEqual(quantities[1].others(), [])

    def test_the_median_counts(self):
        self.assertEqual(list(ratios([1, 2, 900], [4, 4, 4]).values()), [0.5])

    def test_nothing_measured_is_an_error(self):
        for values in ([], [float("nan")], [float("inf")]):
            with self.assertRaises(ValueError):
                bench.read([line("builtin", values)])

    def test_the_same_twice_is_an_error(self):
        with self.assertRaises(ValueError):
            bench.read([line("builtin", [1]), line("builtin", [1])])


class Ratios(unittest.TestCase):
    def test_more_speed_is_better(self):
        quantity, = bench.read([line("devmem_provider", [200], unit="MiB/s"),
                                line("builtin", [100], unit="MiB/s")])
        self.assertEqual(quantity.ratio("builtin"), 0.5)

    def test_times_are_not_recorded(self):
        self.assertEqual(ratios([1], [2], unit="ns"), {})
        self.assertEqual(ratios([1], [2], unit="MiB/s"), {})

    def test_what_differs_from_boot_to_boot_is_left_out(self):
        quantities = bench.read([line(subject, [1], op=op) for op in ("bind", "unbind")
                                 for subject in ("devmem_provider", "builtin")])
        unchecked = [{"series": "receive", "case": {"op": "unbind"}}]
        self.assertEqual(list(bench.ratios(quantities, unchecked)),
                         ["receive op=bind [instructions/MiB] to builtin"])
        for other in ({"series": "bind"}, {"per": "buffer"}, {"unit": "bytes"}):
            self.assertEqual(len(bench.ratios(quantities, [{**other, "case": {}}])), 2)

    def test_the_patched_kernel_to_the_unpatched_one(self):
        quantity, = bench.read([line("unpatched", [4]), line("patched", [2])])
        self.assertEqual(quantity.ordered(), ["patched", "unpatched"])
        self.assertEqual(quantity.ratio("unpatched"), 0.5)

    def test_nothing_to_nothing(self):
        self.assertEqual(list(ratios([0], [0]).values()), [1.0])
        self.assertEqual(list(ratios([1], [0]).values()), [float("inf")])


class Check(unittest.TestCase):
    def verdict(self, measured, expected):
        (name, failure, remark), = bench.check(measured, expected)
        return failure, remark

    def test_as_recorded(self):
        self.assertEqual(self.verdict({"a": 0.5}, {"a": 0.5}), (None, None))
        self.assertEqual(self.verdict({"a": 0.59}, {"a": 0.5}), (None, None))
        self.assertEqual(self.verdict({"a": 0.43}, {"a": 0.5}), (None, None))

    def test_worse_fails(self):
        failure, _ = self.verdict({"a": 0.61}, {"a": 0.5})
        self.assertIn("is 0.61, recorded is 0.5", failure)

    def test_much_better_is_told(self):
        failure, remark = self.verdict({"a": 0.4}, {"a": 0.5})
        self.assertIsNone(failure)
        self.assertIn("record it anew", remark)

    def test_missing_and_new_fail(self):
        self.assertIn("not measured", self.verdict({}, {"a": 1})[0])
        self.assertIn("nothing is recorded", self.verdict({"a": 1}, {})[0])

    def test_the_report_is_ktap(self):
        verdicts = bench.check({"a [b/c]": 2.0, "d": 1.0, "e": 0.1}, {"a [b/c]": 1, "d": 1, "e": 1})
        out = io.StringIO()
        self.assertFalse(bench.print_ktap(verdicts, out))
        results = ktap.parse_ktap("bench/ratios", out.getvalue(), 1)
        self.assertEqual(results.passed, ["bench/ratios/d", "bench/ratios/e"])
        self.assertEqual(results.failed, [("bench/ratios/a [b/c]", "is 2, recorded is 1")])
        self.assertEqual(results.skipped, [])


class Targets(unittest.TestCase):
    MEASURED = bench.read([line("devmem_provider", [10], held=0), line("builtin", [40], held=0),
                           line("devmem_provider", [12], held=9), line("builtin", [24], held=9)])
    TARGET = {"name": "half", "series": "receive", "unit": "instructions", "per": "MiB",
              "case": {}, "to": "builtin", "at_most": 0.5}

    def rows(self, **changes):
        return bench.target_rows([{**self.TARGET, **changes}], self.MEASURED)[1]

    def test_the_worst_case_counts(self):
        self.assertEqual(self.rows(), [["half", "0.5", "0.5", "yes"]])
        self.assertEqual(self.rows(at_most=0.4), [["half", "0.4", "0.5", "no"]])
        self.assertEqual(self.rows(case={"held": 0}), [["half", "0.5", "0.25", "yes"]])

    def test_against_another_case(self):
        target = {k: v for k, v in self.TARGET.items() if k != "to"}
        target |= {"case": {"held": 9}, "to_case": {"held": 0}, "at_most": 1.1}
        self.assertEqual(bench.target_rows([target], self.MEASURED)[1],
                         [["half", "1.1", "1.2", "no"]])

    def test_the_figure_itself(self):
        target = {k: v for k, v in self.TARGET.items() if k != "to"}
        self.assertEqual(bench.target_rows([{**target, "at_most": 11}], self.MEASURED)[1],
                         [["half", "11", "12", "no"]])

    def test_what_was_not_measured_is_left_out(self):
        self.assertEqual(self.rows(case={"held": 7}), [])
        self.assertEqual(self.rows(to="tcp"), [])


class Pages(unittest.TestCase):
    LINES = [line(subject, [value, value * 1.1], size=size)
             for size, value in ((1, 1000), (2, 2000))
             for subject, value in (("builtin", value * 4), ("devmem_provider", value))]

    def test_table(self):
        heading, rows = bench.rows_of(bench.read(self.LINES))
        self.assertEqual(heading, ["size", "devmem_provider", "builtin", "to builtin"])
        self.assertEqual(rows[0], ["1", "1 050 ±2 %", "4 200 ±2 %", "0.25"])

    def test_cells_of_a_row_line_up(self):
        lines = bench.rst_table(["a", "b"], [["", "1"], ["xx", ""]])
        self.assertEqual(lines, ["== ==", "a  b", "== ==", "\\  1", "xx --", "== =="])

    def test_a_page_is_the_same_each_time(self):
        written = []
        for _ in range(2):
            with tempfile.TemporaryDirectory() as directory:
                path = pathlib.Path(directory)
                bench.write_json(path / "a.json", {"x": 1})
                bench.write_rst(path / "a.rst", bench.read(self.LINES), [])
                written.append({f.name: f.read_text() for f in path.iterdir()})
        self.assertEqual(written[0], written[1])
        self.assertIn("receive: instructions per MiB", written[0]["a.rst"])


if __name__ == "__main__":
    unittest.main()
