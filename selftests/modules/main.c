// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/devmem_test: what tests of device memory need from inside the kernel
 */

#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "devmem_test.h"

/* An open file. */
struct devmem_test {
	/* Protects @injection. */
	struct mutex lock;
	/* Set once, ends with the file. */
	struct devmem_test_injection *injection;
};

static int devmem_test_seq_show(struct seq_file *seq, void *unused)
{
	struct devmem_test *test = seq->private;

	mutex_lock(&test->lock);
	if (test->injection)
		devmem_test_show(seq, test->injection);
	mutex_unlock(&test->lock);

	return 0;
}

static int devmem_test_open(struct inode *inode, struct file *file)
{
	struct devmem_test *test;
	int err;

	test = kzalloc_obj(*test);
	if (!test)
		return -ENOMEM;
	mutex_init(&test->lock);

	/* What misc_open() left there is not needed. */
	file->private_data = NULL;
	err = single_open(file, devmem_test_seq_show, test);
	if (err)
		kfree(test);
	return err;
}

static int devmem_test_release(struct inode *inode, struct file *file)
{
	struct seq_file *seq = file->private_data;
	struct devmem_test *test = seq->private;

	if (test->injection)
		devmem_test_stop(test->injection);
	mutex_destroy(&test->lock);
	kfree(test);
	return single_release(inode, file);
}

static long devmem_test_start(struct devmem_test *test, unsigned int cmd,
			      const void __user *arg)
{
	struct devmem_test_injection *injection;
	struct devmem_test_fault fault;
	u32 tid;

	lockdep_assert_held(&test->lock);

	if (test->injection)
		return -EBUSY;

	if (cmd == DEVMEM_TEST_IOC_FAULT) {
		if (copy_from_user(&fault, arg, sizeof(fault)))
			return -EFAULT;
		fault.function[sizeof(fault.function) - 1] = '\0';
		injection = devmem_test_inject(&fault);
	} else {
		if (copy_from_user(&tid, arg, sizeof(tid)))
			return -EFAULT;
		injection = devmem_test_watch(tid);
	}
	if (IS_ERR(injection))
		return PTR_ERR(injection);

	test->injection = injection;
	return 0;
}

static long devmem_test_ioctl(struct file *file, unsigned int cmd,
			      unsigned long arg)
{
	struct seq_file *seq = file->private_data;
	struct devmem_test *test = seq->private;
	struct devmem_test_dmabuf dmabuf;
	struct devmem_test_state state;
	struct devmem_test_bench bench;
	struct devmem_test_ops ops;
	struct devmem_test_pci pci;
	s32 fd;
	long ret;

	switch (cmd) {
	case DEVMEM_TEST_IOC_DMABUF:
		if (copy_from_user(&dmabuf, (void __user *)arg, sizeof(dmabuf)))
			return -EFAULT;
		return devmem_test_make_dmabuf(&dmabuf);
	case DEVMEM_TEST_IOC_STATE:
		if (copy_from_user(&state, (void __user *)arg, sizeof(state)))
			return -EFAULT;
		ret = devmem_test_state(&state);
		if (!ret && copy_to_user((void __user *)arg, &state, sizeof(state)))
			return -EFAULT;
		return ret;
	case DEVMEM_TEST_IOC_SIGNAL:
	case DEVMEM_TEST_IOC_GO_ON:
	case DEVMEM_TEST_IOC_MOVE:
	case DEVMEM_TEST_IOC_REVOKE:
		if (copy_from_user(&fd, (void __user *)arg, sizeof(fd)))
			return -EFAULT;
		if (cmd == DEVMEM_TEST_IOC_SIGNAL)
			return devmem_test_signal(fd);
		if (cmd == DEVMEM_TEST_IOC_GO_ON)
			return devmem_test_go_on(fd);
		if (cmd == DEVMEM_TEST_IOC_MOVE)
			return devmem_test_move(fd);
		return devmem_test_revoke(fd);
	case DEVMEM_TEST_IOC_BENCH:
		if (copy_from_user(&bench, (void __user *)arg, sizeof(bench)))
			return -EFAULT;
		return devmem_test_bench(&bench);
	case DEVMEM_TEST_IOC_OPS:
		if (copy_from_user(&ops, (void __user *)arg, sizeof(ops)))
			return -EFAULT;
		return devmem_test_ops(&ops);
	case DEVMEM_TEST_IOC_FAMILY:
		return devmem_test_come_and_go();
	case DEVMEM_TEST_IOC_PCI:
		if (copy_from_user(&pci, (void __user *)arg, sizeof(pci)))
			return -EFAULT;
		return devmem_test_pci(&pci);
	case DEVMEM_TEST_IOC_FAULT:
	case DEVMEM_TEST_IOC_WATCH:
		mutex_lock(&test->lock);
		ret = devmem_test_start(test, cmd, (void __user *)arg);
		mutex_unlock(&test->lock);
		return ret;
	case DEVMEM_TEST_IOC_FORGET:
		mutex_lock(&test->lock);
		if (test->injection)
			devmem_test_forget(test->injection);
		mutex_unlock(&test->lock);
		return 0;
	default:
		return -ENOTTY;
	}
}

static const struct file_operations devmem_test_fops = {
	.owner		= THIS_MODULE,
	.open		= devmem_test_open,
	.release	= devmem_test_release,
	.read		= seq_read,
	.llseek		= seq_lseek,
	.unlocked_ioctl	= devmem_test_ioctl,
};

static struct miscdevice devmem_test_misc = {
	.minor	= MISC_DYNAMIC_MINOR,
	.name	= "devmem_test",
	.fops	= &devmem_test_fops,
	.mode	= 0600,
};

static int __init devmem_test_init(void)
{
	int err = devmem_test_init_fails();

	return err ?: misc_register(&devmem_test_misc);
}
module_init(devmem_test_init);

static void __exit devmem_test_exit(void)
{
	misc_deregister(&devmem_test_misc);
	devmem_test_fault_exit();
}
module_exit(devmem_test_exit);

MODULE_DESCRIPTION("Odd dma-bufs and ops, failing calls and benches, for tests of device memory");
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS("DMA_BUF");
