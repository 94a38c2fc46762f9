#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of scripts/check-driver, on a small driver, and of the guide that it belongs to."""

import contextlib
import importlib.machinery
import importlib.util
import io
import pathlib
import re
import shutil
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
GUIDE = ROOT / "Documentation/driver-guide.rst"

# Not to leave a compiled copy in scripts/.
sys.dont_write_bytecode = True
LOADER = importlib.machinery.SourceFileLoader("check_driver", str(ROOT / "scripts/check-driver"))
check = importlib.util.module_from_spec(importlib.util.spec_from_loader("check_driver", LOADER))
LOADER.exec_module(check)

# Everything that is a must; the comment tells for which line.
DRIVER = """
static int nic_pool(struct nic_rq *rq)
{
	struct page_pool_params pp = {
		.flags = PP_FLAG_ALLOW_UNREADABLE_NETMEM |	/* rx-pool-flags */
			 PP_FLAG_DMA_MAP |
			 PP_FLAG_DMA_SYNC_DEV,
		.netdev = rq->netdev,
		.queue_idx = rq->index,				/* rx-pool-params */
		.dev = rq->dev,
	};

	rq->pool = page_pool_create(&pp);
	return PTR_ERR_OR_ZERO(rq->pool);
}

static int
nic_fill(struct nic_rq *rq,
	 gfp_t gfp)
{
	netmem = page_pool_alloc_netmems(rq->pool, gfp);	/* rx-alloc */
	addr = page_pool_get_dma_addr_netmem(netmem);		/* rx-dma-address */
	page_pool_put_full_netmem(rq->pool, netmem, false);	/* rx-put */
}

static void nic_rx(struct nic_rq *rq)
{
	skb_add_rx_frag_netmem(skb, 0, netmem, 0, len, size);	/* rx-frag */
	skb_mark_for_recycle(skb);				/* rx-recycle */
}

static void nic_tx(struct sk_buff *skb)
{
	addr = skb_frag_dma_map(dev, frag);			/* tx-map */
	netmem_dma_unmap_addr_set(netmem, buf, dma, addr);	/* tx-unmap */
	netmem_dma_unmap_page_attrs(dev, addr, len, dir, 0);
	napi_consume_skb(skb, 1);				/* tx-complete */
}

static int nic_queue_stop(struct net_device *dev, void *mem, int idx)
{
	napi_disable_locked(&rq->napi);				/* rx-stop */
}

static const struct netdev_queue_mgmt_ops nic_queue_ops = {
	.ndo_queue_mem_size	= sizeof(struct nic_rq),
	.ndo_queue_mem_alloc	= nic_queue_mem_alloc,
	.ndo_queue_mem_free	= nic_queue_mem_free,
	.ndo_queue_start	= nic_queue_start,
	.ndo_queue_stop		= nic_queue_stop,		/* rx-queue-ops */
};

static void nic_probe(struct net_device *dev)
{
	dev->queue_mgmt_ops = &nic_queue_ops;
	dev->netmem_tx = NETMEM_TX_DMA;				/* tx-mode */
	ring->tcp_data_split = ETHTOOL_TCP_DATA_SPLIT_ENABLED;
}

static const struct ethtool_ops nic_ethtool_ops = {
	.supported_ring_params = ETHTOOL_RING_USE_TCP_DATA_SPLIT, /* rx-split */
};
"""

MUSTS = [line[0] for line in check.LINES if line[1] == "must"]


class CheckDriver(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.dir)

    def sources(self, text):
        path = self.dir / "nic.c"
        path.write_text(text)
        return [check.Source(path, "nic.c")]

    def report(self, text, half=""):
        """Whether no must is missing, and what is said of each line."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            complete = check.report(self.sources(text), half)
        lines = [line.split(None, 2) for line in out.getvalue().splitlines()]
        return complete, {name: result for name, _, result in lines}

    def test_all_there(self):
        complete, said = self.report(DRIVER)
        self.assertTrue(complete)
        self.assertEqual(list(said), [line[0] for line in check.LINES])
        line = DRIVER[:DRIVER.index("/* rx-stop */")].count("\n") + 1
        self.assertEqual(said["rx-stop"], f"found nic.c:{line}")
        self.assertEqual(said["rx-sync"], "not found: page_pool_dma_sync_netmem_for_cpu(")
        self.assertTrue(said["rx-dma-device"].startswith("not needed if "))
        self.assertEqual(said["rx-checksum"], "no place found by name")

    def test_each_must_is_missed(self):
        self.assertEqual(sorted(MUSTS), sorted(re.findall(r"/\* ([rt]x-[\w-]+) \*/", DRIVER)))
        for name in MUSTS:
            kept = [line for line in DRIVER.splitlines(True) if f"/* {name} */" not in line]
            complete, said = self.report("".join(kept))
            self.assertFalse(complete, name)
            missing = [other for other in MUSTS if not said[other].startswith("found")]
            self.assertEqual(missing, [name])

    def test_one_half(self):
        without = DRIVER.replace("skb_frag_dma_map", "dma_map_page")
        self.assertFalse(self.report(without, "tx-")[0])
        complete, said = self.report(without, "rx-")
        self.assertTrue(complete)
        self.assertNotIn("tx-map", said)

    def test_comments_and_strings_do_not_count(self):
        for instead in ("/* %s */", '"%s"', "// %s\n"):
            call = "skb_frag_dma_map(dev, frag)"
            text = DRIVER.replace(call, instead % call)
            self.assertIn("not found", self.report(text)[1]["tx-map"])

    def test_parameters_of_something_else_do_not_count(self):
        text = DRIVER.replace("\t\t.netdev = rq->netdev,\n", "")
        text += "static void other(void)\n{\n\tstruct info i = { .netdev = dev };\n}\n"
        said = self.report(text)[1]["rx-pool-params"]
        self.assertEqual(said, "not found: in page_pool_create: .netdev=")

    def cell(self, name, says):
        """What is wrong with a cell of the guide, were it about this driver."""
        line = next(line for line in check.LINES if line[0] == name)
        return check.check_cell(self.sources(DRIVER), line[1], line[2], says)

    def test_cells(self):
        self.assertIsNone(self.cell("rx-alloc", "nic.c: ``nic_fill()``, always"))
        self.assertIsNone(self.cell("rx-queue-ops", "nic.c: ``nic_queue_stop()``"))
        self.assertIsNone(self.cell("rx-sync", "not needed: nobody reads"))
        for name, says, why in (
            ("rx-alloc", "nic.c: ``nic_gone()``", "no function nic_gone() in nic.c"),
            ("rx-alloc", "other.c: ``nic_fill()``", "no file other.c"),
            ("rx-alloc", "``nic_fill()``", "no file for nic_fill()"),
            ("rx-alloc", "nic.c: ``nic_rx()``", "no place in nic_rx"),
            ("rx-alloc", "somewhere", "no function is named"),
            ("rx-checksum", "nic.c: ``nic_rx()`` says ``CHECKSUM_NONE``", "no CHECKSUM_NONE"),
            ("rx-sync", "nic.c: ``nic_rx()``", "not found"),
        ):
            self.assertEqual(self.cell(name, says), why)
        self.assertTrue(self.cell("rx-alloc", "lacks it").startswith("found at nic.c:"))


class Guide(unittest.TestCase):
    """The guide has the lines that the script looks for."""

    def setUp(self):
        self.text = GUIDE.read_text()
        self.told = check.read_guide(self.text)

    def test_same_lines(self):
        self.assertEqual(
            [(name, level) for name, (level, _) in self.told.items()],
            [(line[0], line[1]) for line in check.LINES],
        )

    def test_each_driver_in_each_line(self):
        for name, (_, cells) in self.told.items():
            self.assertEqual(list(cells), list(check.DRIVERS), name)

    def test_table_of_results(self):
        for driver in check.DRIVERS:
            row = re.search(rf"^{driver} +all found (.+)$", self.text, re.M)
            self.assertTrue(row, driver)
            missing = [
                name for name, (level, cells) in self.told.items()
                if level == "should" and cells[driver].startswith(("lacks", "not needed"))
            ]
            self.assertEqual(re.findall(r"``([\w-]+)``", row[1]), missing, driver)
            for name in MUSTS:
                self.assertFalse(self.told[name][1][driver].startswith(("lacks", "not needed")))

    def test_kernel(self):
        pinned = re.search(r"^KERNEL_VERSION=([\d.]+)", (ROOT / "scripts/lib.sh").read_text(), re.M)
        self.assertEqual(set(re.findall(r"Linux ([\d.]*\d)", self.text)), {pinned[1]})


if __name__ == "__main__":
    unittest.main()
