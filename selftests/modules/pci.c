// SPDX-License-Identifier: GPL-2.0
/*
 * What happens to a NIC on PCI while the machine goes on: it alone is suspended, or
 * recovers from an error
 */

#include <linux/device.h>
#include <linux/err.h>
#include <linux/netdevice.h>
#include <linux/nsproxy.h>
#include <linux/pci.h>
#include <linux/pm.h>
#include <linux/pm_runtime.h>
#include <linux/sched.h>
#include <net/net_namespace.h>

#include "devmem_test.h"

static struct device *pci_parent(u32 ifindex)
{
	struct device *parent = NULL;
	struct net_device *netdev;

	netdev = dev_get_by_index(current->nsproxy->net_ns, ifindex);
	if (!netdev)
		return ERR_PTR(-ENODEV);
	if (netdev->dev.parent && dev_is_pci(netdev->dev.parent))
		parent = get_device(netdev->dev.parent);
	dev_put(netdev);

	return parent ?: ERR_PTR(-EOPNOTSUPP);
}

/* As pci_pm_suspend() and pci_pm_suspend_noirq() do. */
static int pci_suspend(struct pci_dev *pdev, const struct dev_pm_ops *pm)
{
	int err;

	if (!pm || !pm->suspend)
		return -EOPNOTSUPP;

	pm_runtime_get_sync(&pdev->dev);
	err = pm->suspend(&pdev->dev);
	if (err) {
		pm_runtime_put(&pdev->dev);
		return err;
	}
	pci_save_state(pdev);
	return pci_set_power_state(pdev, PCI_D3hot);
}

static int pci_resume(struct pci_dev *pdev, const struct dev_pm_ops *pm)
{
	int err;

	if (!pm || !pm->resume)
		return -EOPNOTSUPP;

	pci_set_power_state(pdev, PCI_D0);
	pci_restore_state(pdev);
	err = pm->resume(&pdev->dev);
	pm_runtime_put(&pdev->dev);

	return err;
}

/* As pcie_do_recovery() does. */
static int pci_recover(struct pci_dev *pdev)
{
	const struct pci_error_handlers *handlers = pdev->driver->err_handler;
	pci_ers_result_t result;
	int err = 0;

	if (!handlers || !handlers->error_detected || !handlers->slot_reset ||
	    !handlers->resume)
		return -EOPNOTSUPP;

	pdev->error_state = pci_channel_io_frozen;
	result = handlers->error_detected(pdev, pci_channel_io_frozen);
	if (result == PCI_ERS_RESULT_NEED_RESET) {
		err = __pci_reset_function_locked(pdev);
		pdev->error_state = pci_channel_io_normal;
		result = handlers->slot_reset(pdev);
	}
	pdev->error_state = pci_channel_io_normal;
	/* Also without a reset: others want the NIC back. */
	handlers->resume(pdev);
	if (!err && result != PCI_ERS_RESULT_RECOVERED)
		err = -EIO;
	return err;
}

int devmem_test_pci(const struct devmem_test_pci *spec)
{
	struct device *dev = pci_parent(spec->ifindex);
	int err = -ENODEV;

	if (IS_ERR(dev))
		return PTR_ERR(dev);

	device_lock(dev);
	if (!dev->driver)
		goto unlock;

	switch (spec->what) {
	case DEVMEM_TEST_PCI_SUSPEND:
		err = pci_suspend(to_pci_dev(dev), dev->driver->pm);
		break;
	case DEVMEM_TEST_PCI_RESUME:
		err = pci_resume(to_pci_dev(dev), dev->driver->pm);
		break;
	case DEVMEM_TEST_PCI_RECOVER:
		err = pci_recover(to_pci_dev(dev));
		break;
	default:
		err = -EINVAL;
	}

unlock:
	device_unlock(dev);
	put_device(dev);

	return err;
}
