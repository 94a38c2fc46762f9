// SPDX-License-Identifier: GPL-2.0
/*
 * Calls that fail on demand, and where faults struck
 *
 * As kernel/fail_function.c does it, but for any function that kprobes can
 * probe: who asks for it has to know what may return what.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/atomic.h>
#include <linux/cpu.h>
#include <linux/fault-inject.h>
#include <linux/kprobes.h>
#include <linux/mutex.h>
#include <linux/preempt.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/stacktrace.h>
#include <linux/string.h>
#include <linux/workqueue.h>

#include "devmem_test.h"

#define MAX_FAILURES	256
#define MAX_DEPTH	48
#define MAX_ATTEMPTS	10

struct failure {
	/* 0 until @stack is complete. */
	unsigned int depth;
	unsigned long stack[MAX_DEPTH];
};

struct devmem_test_injection {
	struct devmem_test_fault spec;
	/* Has a handler unless this is @watcher. */
	struct kprobe fault;
	atomic_t calls;
	atomic_t failures;
	/* Each is written once, by who got its index from @failures: handlers
	 * may interrupt anything, and take no locks.
	 */
	struct failure log[MAX_FAILURES];
};

static bool concerns(const struct devmem_test_injection *injection)
{
	if (!injection->spec.tid)
		return true;
	/* The breakpoint itself counts as a hard interrupt, so do not ask for
	 * those: what tests have fail is not called there.
	 */
	return !in_serving_softirq() &&
	       task_pid_nr(current) == injection->spec.tid;
}
NOKPROBE_SYMBOL(concerns);

static void note_failure(struct devmem_test_injection *injection)
{
	unsigned int index = atomic_inc_return(&injection->failures) - 1;
	struct failure *failure;
	unsigned int depth;

	if (index >= MAX_FAILURES)
		return;
	failure = &injection->log[index];
	depth = stack_trace_save(failure->stack, MAX_DEPTH, 1);
	/* Pairs with devmem_test_show(): the stack is complete. */
	smp_store_release(&failure->depth, depth);
}
NOKPROBE_SYMBOL(note_failure);

static int fault_handler(struct kprobe *probe, struct pt_regs *regs)
{
	struct devmem_test_injection *injection =
		container_of(probe, struct devmem_test_injection, fault);

	unsigned int call;

	if (!concerns(injection))
		return 0;
	call = atomic_inc_return(&injection->calls);
	if (injection->spec.nth && call != injection->spec.nth)
		return 0;

	note_failure(injection);
	/* Return to the caller: nothing but its address is on the stack yet. */
	regs_set_return_value(regs, injection->spec.ret);
	instruction_pointer_set(regs, regs_get_kernel_stack_nth(regs, 0));
	regs->sp += sizeof(unsigned long);
	return 1;
}
NOKPROBE_SYMBOL(fault_handler);

/* Probes with such a handler are not optimised to a jump, from which there is no
 * way to return elsewhere.
 */
static void fault_post_handler(struct kprobe *probe, struct pt_regs *regs,
			       unsigned long flags)
{
}

/* Who watches for faults, if anybody does. Changed with watch_lock held. */
static struct devmem_test_injection __rcu *watcher;
static DEFINE_MUTEX(watch_lock);
static bool watch_registered;

/* A fault that never strikes: to learn whether the watch sees who asks for it. */
static DECLARE_FAULT_ATTR(trial);
static atomic_t trials_seen = ATOMIC_INIT(0);

static bool is_trial(struct pt_regs *regs)
{
	return regs_get_kernel_argument(regs, 0) == (unsigned long)&trial;
}
NOKPROBE_SYMBOL(is_trial);

/* Handlers of probes run with preemption off, and may interrupt anything. */
static struct devmem_test_injection *current_watcher(void)
{
	return rcu_dereference_raw(watcher);
}
NOKPROBE_SYMBOL(current_watcher);

static int watch_entry_handler(struct kretprobe_instance *instance,
			       struct pt_regs *regs)
{
	struct devmem_test_injection *injection = current_watcher();

	if (is_trial(regs)) {
		atomic_inc(&trials_seen);
		return 1;
	}
	if (!injection || !concerns(injection))
		return 1;
	atomic_inc(&injection->calls);
	return 0;
}
NOKPROBE_SYMBOL(watch_entry_handler);

static int watch_handler(struct kretprobe_instance *instance,
			 struct pt_regs *regs)
{
	struct devmem_test_injection *injection = current_watcher();

	if (injection && (bool)(u8)regs_return_value(regs))
		note_failure(injection);
	return 0;
}
NOKPROBE_SYMBOL(watch_handler);

/* Registered when it is first needed, and then until the module goes: all CPUs call
 * this function all the time, and an emulated one has been seen to run into the
 * breakpoint of a probe that was there no more.
 */
static struct kretprobe watch = {
	.kp.symbol_name	= "should_fail_ex",
	.entry_handler	= watch_entry_handler,
	.handler	= watch_handler,
};

static struct devmem_test_injection *
injection_new(const struct devmem_test_fault *spec)
{
	struct devmem_test_injection *injection = kvzalloc_obj(*injection);

	if (injection)
		injection->spec = *spec;
	return injection;
}

struct devmem_test_injection *
devmem_test_inject(const struct devmem_test_fault *spec)
{
	struct devmem_test_injection *injection = injection_new(spec);
	int err;

	if (!injection)
		return ERR_PTR(-ENOMEM);

	injection->fault.symbol_name = injection->spec.function;
	injection->fault.pre_handler = fault_handler;
	injection->fault.post_handler = fault_post_handler;
	err = register_kprobe(&injection->fault);
	if (err) {
		kvfree(injection);
		return ERR_PTR(err);
	}
	return injection;
}

static long watch_sees(void *unused)
{
	int before = atomic_read(&trials_seen);

	should_fail(&trial, 1);
	return atomic_read(&trials_seen) != before;
}

static bool watch_sees_on_all_cpus(void)
{
	bool sees = true;
	int cpu;

	lockdep_assert_held(&watch_lock);

	cpus_read_lock();
	for_each_online_cpu(cpu)
		sees &= work_on_cpu(cpu, watch_sees, NULL);
	cpus_read_unlock();
	return sees;
}

/* A CPU that calls the function while another one writes the probe may leave an emulator
 * with a translation that has no probe in it. Writing it again helps then.
 */
static int watch_prove(void)
{
	int attempt, err = 0;

	for (attempt = 0; !err && attempt < MAX_ATTEMPTS; attempt++) {
		if (watch_sees_on_all_cpus())
			return 0;
		pr_info("the probe of %s is not run, writing it again\n",
			watch.kp.symbol_name);
		err = disable_kretprobe(&watch) ?: enable_kretprobe(&watch);
	}
	return err ?: -EIO;
}

static int watch_start(struct devmem_test_injection *injection)
{
	int err;

	lockdep_assert_held(&watch_lock);

	if (rcu_access_pointer(watcher))
		return -EBUSY;

	if (!watch_registered) {
		err = register_kretprobe(&watch);
		if (err)
			return err;
		watch_registered = true;
	}
	err = watch_prove();
	if (err)
		return err;
	rcu_assign_pointer(watcher, injection);
	return 0;
}

/* One at a time. */
struct devmem_test_injection *devmem_test_watch(u32 tid)
{
	const struct devmem_test_fault spec = { .tid = tid };
	struct devmem_test_injection *injection = injection_new(&spec);
	int err;

	if (!injection)
		return ERR_PTR(-ENOMEM);

	mutex_lock(&watch_lock);
	err = watch_start(injection);
	mutex_unlock(&watch_lock);
	if (err) {
		kvfree(injection);
		return ERR_PTR(err);
	}
	return injection;
}

/* How many calls, failures, and calls that the watch could not follow; then symbols of the
 * callers, the innermost first, one a line. An empty line ends each failure.
 */
void devmem_test_show(struct seq_file *seq,
		      const struct devmem_test_injection *injection)
{
	unsigned int i, j, depth;

	seq_printf(seq, "%d %d %lu\n", atomic_read(&injection->calls),
		   atomic_read(&injection->failures),
		   watch.nmissed + watch.kp.nmissed);
	for (i = 0; i < MAX_FAILURES; i++) {
		/* Pairs with note_failure(). */
		depth = smp_load_acquire(&injection->log[i].depth);
		if (!depth)
			break;
		for (j = 0; j < depth; j++)
			seq_printf(seq, "%ps\n",
				   (void *)injection->log[i].stack[j]);
		seq_putc(seq, '\n');
	}
}

/* A failure that happens meanwhile may be lost. */
void devmem_test_forget(struct devmem_test_injection *injection)
{
	unsigned int i;

	for (i = 0; i < MAX_FAILURES; i++)
		injection->log[i].depth = 0;
	atomic_set(&injection->calls, 0);
	atomic_set(&injection->failures, 0);
}

static void watch_stop(void)
{
	mutex_lock(&watch_lock);
	RCU_INIT_POINTER(watcher, NULL);
	mutex_unlock(&watch_lock);
	/* No handler has it any more. */
	synchronize_rcu();
}

void devmem_test_stop(struct devmem_test_injection *injection)
{
	if (injection->fault.pre_handler)
		unregister_kprobe(&injection->fault);
	else
		watch_stop();
	kvfree(injection);
}

/* Nobody watches any more. */
void devmem_test_fault_exit(void)
{
	if (watch_registered)
		unregister_kretprobe(&watch);
}
