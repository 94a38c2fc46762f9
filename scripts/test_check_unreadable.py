#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of scripts/check-unreadable, on a small tree, and of the list that it reads."""

import csv
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHECK = ROOT / "scripts/check-unreadable"
DOCUMENTATION = ROOT / "Documentation"
HEADER = "file,function,calls,does,verdict,why,test"

SKBUFF = """
/* skb_copy_bits() in a comment, or "skb_checksum()" */
int skb_copy_bits(const struct sk_buff *skb, int offset, void *to, int len)
{
	/* skb_linearize(skb) */
	pr_debug("skb_linearize(%p)", skb);
	return walk(skb_shinfo(skb)->frags[0]);
}
EXPORT_SYMBOL(skb_copy_bits);

static struct sk_buff *
two_lines(struct sk_buff *skb,
	  int (*output)(struct net *, struct sk_buff *))
{
	if (skb_copy_bits(skb, 0, NULL, 1) || skb_copy_bits(skb, 1, NULL, 1))
		return NULL;
	return skb;
}

static const struct proto_ops ops = {
	.read_sock	= tcp_read_sock,
};
"""

HEADER_FILE = """
#define pull(skb)		\\
	__pskb_pull_tail(skb, 1)

static inline int short_one(struct sk_buff *skb) {
	return skb_linearize(skb);
}
"""

FILTER = """
BPF_CALL_3(bpf_skb_look, struct sk_buff *, skb, u32, offset, u32, len)
{
	return skb_copy_bits(skb, offset, NULL, len);
}
"""

SITES = {
    "include/linux/skbuff.h,pull,__pskb_pull_tail",
    "include/linux/skbuff.h,short_one,skb_linearize",
    "net/core/filter.c,bpf_skb_look,skb_copy_bits",
    "net/core/skbuff.c,ops,tcp_read_sock",
    "net/core/skbuff.c,skb_copy_bits,->frags",
    "net/core/skbuff.c,two_lines,skb_copy_bits",
    "net/sctp/input.c,receive,skb_checksum",
}


class CheckUnreadable(unittest.TestCase):
    def setUp(self):
        self.tree = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.tree)
        self.write("net/core/skbuff.c", SKBUFF)
        self.write("net/core/filter.c", FILTER)
        self.write("include/linux/skbuff.h", HEADER_FILE)
        self.write("net/sctp/input.c", "int receive(void)\n{\n\tskb_checksum(a, 0, 1, 0);\n}\n")
        self.write("drivers/net/ethernet/some.c", "int f(void)\n{\n\tskb_copy_bits(a);\n}\n")
        self.list = self.tree / "list.csv"
        self.sites = set(SITES)

    def write(self, name, text):
        path = self.tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def check(self, *args):
        command = [CHECK, "--list", self.list, *args, self.tree]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def write_list(self, *more):
        rows = [f"{site},-EFAULT,right,Because.,none" for site in self.sites]
        self.list.write_text("\n".join([HEADER, *rows, *more]) + "\n")

    def differs(self, *lines):
        done = self.check()
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertEqual(sorted(done.stdout.splitlines()[:-1]), sorted(lines))

    def refused(self, words):
        done = self.check()
        self.assertEqual(done.returncode, 1)
        self.assertIn(words, done.stderr)

    def test_what_is_found(self):
        self.assertEqual(set(self.check("--print").stdout.splitlines()), SITES)

    def test_the_same(self):
        self.write_list()
        done = self.check()
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual(done.stdout, "7 call sites in 7 functions\n")

    def test_new_function(self):
        self.write_list()
        self.write("net/ipv4/new.c", "void look(void)\n{\n\tkmap_local_page(p);\n}\n")
        self.differs("not in the list: net/ipv4/new.c: look(): kmap_local_page")

    def test_new_call(self):
        self.write_list()
        self.write("net/core/skbuff.c", SKBUFF.replace("return NULL;", "skb_checksum(skb);"))
        self.differs("not in the list: net/core/skbuff.c: two_lines(): skb_checksum")

    def test_gone(self):
        self.write_list("net/core/sock.c,gone,skb_copy_bits skb_copy,NULL,right,Why.,none")
        self.differs(
            "not in the tree: net/core/sock.c: gone(): skb_copy",
            "not in the tree: net/core/sock.c: gone(): skb_copy_bits",
        )

    def test_moved_lines_do_not_count(self):
        self.write_list()
        self.write("net/core/skbuff.c", "\n\nint a;\n" + SKBUFF)
        self.assertEqual(self.check().returncode, 0)

    def test_directory_out_of_reach(self):
        self.sites -= {site for site in self.sites if "sctp" in site}
        self.write_list("net/sctp/,*,*,nothing,out of reach,Not TCP.,none")
        self.assertEqual(self.check().returncode, 0)
        self.write("net/sctp/input.c", "")
        self.differs("not in the tree: net/sctp/")

    def test_malformed_lists(self):
        self.list.write_text("file,function\n")
        self.refused("columns are")
        for row, words in (
            ("a,b,c,d,right,e", "not 7 columns"),
            ("a,b,c,,right,e,f", "no does"),
            ("a,b,c,d,wrong,e,f", "no such verdict: wrong"),
            ("a,b,c,d,right,e,f\na,b,c,d,right,e,f", "a:b is there twice"),
        ):
            self.list.write_text(f"{HEADER}\n{row}\n")
            self.refused(words)

    def test_no_kernel(self):
        (self.tree / "net/core/skbuff.c").unlink()
        self.assertEqual(self.check().returncode, 2)


class List(unittest.TestCase):
    """What Documentation/unreadable.csv refers to is there."""

    def setUp(self):
        with (DOCUMENTATION / "unreadable.csv").open(newline="", encoding="utf-8") as file:
            self.rows = list(csv.DictReader(file))

    def test_sorted(self):
        keys = [(row["file"], row["function"]) for row in self.rows]
        self.assertEqual(keys, sorted(keys))

    def test_defects_are_described(self):
        page = (DOCUMENTATION / "unreadable.rst").read_text()
        described = set(re.findall(r"^(W\d+)\n-+$", page, flags=re.M))
        used = set()
        for row in self.rows:
            if row["verdict"].startswith("wrong"):
                used.update(re.findall(r"W\d+", row["verdict"]))
        self.assertEqual(used, described)


if __name__ == "__main__":
    unittest.main()
