/* The threads that kernels run on: the team's own or, where a host asks for them, those of OpenMP (team_openmp.c).
 *
 * The own ones are not OpenMP's, for four reasons. libgomp's threads spin for milliseconds after each call, which slows everything else in
 * the process. A barrier among them costs a scheduler tick of 4 ms whenever two threads share one CPU. Its settings can only be
 * made in the environment before the process starts. A forked child that meets a barrier hangs. Here threads without work spin for
 * some 20 us, then sleep; a child of fork() starts a pool of its own.
 *
 * The process has one pool, which grows on demand. A caller that finds it busy runs alone: results do not depend on the team. Nor does a
 * caller of many short steps wait for threads that sleep: it wakes them and goes on, and each joins the team at the next step after it is
 * awake, 5 to 60 us later.
 */
#include <stdatomic.h>
#include <string.h>

#include "kernels.h"
#include "platform.h"

#if defined(__x86_64__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

enum {
    MOST_THREADS = 256,
    IDLE_US = 20,    /* us that a thread without work spins before it sleeps */
    IDLE_MOST = 100, /* us: the same, of a thread that would have met its last call so */
    SPINS = 2000,    /* executions of RELAX, 50 to 100 us, of a thread that waits for others of its team */
    /* calls of fi_yield, 5 ms and more. A wait then sleeps in short naps: the thread that runs instead may not be the one waited for.
       A waiting thread of a higher, real-time priority would otherwise yield to itself for ever. */
    YIELDS = 10000,
    NAP_US = 50, /* us of a nap */
    SIZE_BITS = 10
};
static const long long NEVER = 1LL << 62; /* no number of a call */

/* A thread is ASLEEP until it is wanted, then AWAKE until it sleeps again or a team takes it: then it is a MEMBER to the end of the run. */
enum { ASLEEP, AWAKE, MEMBER };

typedef struct {
    _Alignas(64) atomic_int state;
    int rank;          /* of a MEMBER */
    atomic_int number; /* of the thread; 0: it has not begun, or the system has no such numbers */
    fi_cpus cpus;      /* that a caller has given it */
    atomic_llong from; /* number of the first call in which it takes part */
    atomic_int wanted; /* whether the run has work for it, now or at its next step: then it does not sleep */
    fi_mutex mutex;
    fi_condition wake;
} worker;

static struct {
    fi_mutex busy;    /* held by the caller whose team is running */
    fi_openmp openmp; /* what runs instead of the workers; without functions: the workers do */
    worker workers[MOST_THREADS];
    int started;                    /* workers 1 to `started` exist */
    _Alignas(64) atomic_llong call; /* number of the last call of `task` << SIZE_BITS | threads that take part in it */
    fi_task task;
    void *argument;
    int step;
    _Alignas(64) atomic_int running; /* those of them, beside the caller, that have not finished */
    _Alignas(64) atomic_uint round;  /* number of barriers passed */
    atomic_int arrived;
} pool = {.busy = FI_MUTEX_INIT};

/* Step i of a wait: spin, then let other threads run, then sleep. */
static void wait_a_little(int i) {
    if (i < SPINS) RELAX();
    else if (i < SPINS + YIELDS) fi_yield();
    else fi_nap(NAP_US);
}
static int next_round(int i) { return i < SPINS + YIELDS ? i + 1 : i; }

void fi_barrier(fi_team team) {
    if (team.size < 2) return;
    const unsigned round = atomic_load(&pool.round);
    if (atomic_fetch_add(&pool.arrived, 1) == team.size - 1) {
        atomic_store(&pool.arrived, 0);
        atomic_store(&pool.round, round + 1);
    } else {
        for (int i = 0; atomic_load_explicit(&pool.round, memory_order_acquire) == round; i = next_round(i)) wait_a_little(i);
    }
}

static inline int us_since(double seconds) { return (int)(1e6 * (fi_seconds() - seconds)); }

/* Sleep until wanted, unless a team has taken the thread in the meantime. */
static void doze(worker *w) {
    int awake = AWAKE;
    fi_lock(&w->mutex);
    if (atomic_compare_exchange_strong(&w->state, &awake, ASLEEP)) {
        while (!atomic_load(&w->wanted)) fi_wait(&w->wake, &w->mutex);
        atomic_store(&w->state, AWAKE);
    }
    fi_unlock(&w->mutex);
}

FI_THREAD(work, argument) {
    worker *w = argument;
    long long call, seen = -1;
    double free = fi_seconds(); /* since when it has no work */
    int idle = IDLE_US;
    atomic_store(&w->number, fi_thread_number());
    atomic_store(&w->state, AWAKE);
    for (;;) {
        for (int i = 0; (call = atomic_load_explicit(&pool.call, memory_order_acquire)) == seen; i = next_round(i)) {
            if (atomic_load_explicit(&w->wanted, memory_order_relaxed)) {
                wait_a_little(i);
                free = fi_seconds(); /* the run is not over */
            } else if (us_since(free) < idle) RELAX();
            else doze(w);
        }
        seen = call;
        const long long number = call >> SIZE_BITS, from = atomic_load(&w->from);
        const int size = (int)(call & ((1 << SIZE_BITS) - 1));
        if (number < from || w->rank >= size) continue;
        if (number == from) {
            const int us = us_since(free);
            idle = us > IDLE_US && us < IDLE_MOST ? IDLE_MOST : IDLE_US;
        }
        pool.task(pool.argument, pool.step, (fi_team){w->rank, size});
        atomic_fetch_sub_explicit(&pool.running, 1, memory_order_release);
        free = fi_seconds();
    }
    return 0;
}

/* Empty the pool in the child of a fork: it has none of these threads, and a lock held by one of them would stay locked. */
static void forget(void) {
    pool.started = 0;
    pool.openmp = (fi_openmp){0};
    atomic_store(&pool.arrived, 0);
    fi_mutex_init(&pool.busy);
}

static void heed_forks(void) {
    static int registered;
    if (!registered) registered = fi_at_fork(forget);
}

/* Start the workers up to rank size - 1. Returns the size of the team, which is smaller where the system refuses threads. */
static int grow(int size) {
    heed_forks();
    if (size > MOST_THREADS) size = MOST_THREADS;
    while (pool.started < size - 1) {
        worker *w = &pool.workers[pool.started + 1];
        atomic_store(&w->state, ASLEEP);
        atomic_store(&w->from, NEVER);
        atomic_store(&w->wanted, 0);
        atomic_store(&w->number, 0);
        memset(&w->cpus, 0, sizeof w->cpus);
        fi_mutex_init(&w->mutex);
        fi_condition_init(&w->wake);
        if (!fi_start(work, w)) return pool.started + 1;
        pool.started++;
    }
    return size;
}

/* Take those of the workers 1 to most - 1 that are awake into a team of `size`, and wake the others. Returns the team's new size.
 *
 * A worker is woken where the caller may run, but not on the caller's own CPU: Linux may wake it there though others are idle, and then one
 * of the two waits for the scheduler's tick. */
static int gather(int size, int most) {
    fi_cpus others;
    int elsewhere = -1; /* whether there are other CPUs; -1: not looked up */
    for (int i = 1; i < most && size < most; i++) {
        worker *w = &pool.workers[i];
        int state = AWAKE;
        if (atomic_compare_exchange_strong(&w->state, &state, MEMBER)) {
            w->rank = size++;
            atomic_store(&w->from, (atomic_load(&pool.call) >> SIZE_BITS) + 1);
        }
        if (state == MEMBER || atomic_exchange(&w->wanted, 1) || state == AWAKE) continue;
        const int number = atomic_load(&w->number);
        if (elsewhere < 0) elsewhere = fi_other_cpus(&others);
        if (number && elsewhere && memcmp(&w->cpus, &others, sizeof others)) {
            fi_set_cpus(number, &others);
            w->cpus = others;
        }
        fi_lock(&w->mutex);
        fi_signal(&w->wake);
        fi_unlock(&w->mutex);
    }
    return size;
}

static void dismiss(int most) {
    for (int i = 1; i < most; i++) {
        worker *w = &pool.workers[i];
        int state = MEMBER;
        atomic_store(&w->from, NEVER);
        atomic_compare_exchange_strong(&w->state, &state, AWAKE);
        atomic_store(&w->wanted, 0);
    }
}

/* Run a step on a team. */
static void call(int step, int size) {
    if (size > 1) {
        pool.step = step;
        atomic_store(&pool.running, size - 1);
        const long long number = (atomic_load(&pool.call) >> SIZE_BITS) + 1;
        atomic_store(&pool.call, number << SIZE_BITS | size);
    }
    pool.task(pool.argument, step, (fi_team){0, size});
    for (int i = 0; size > 1 && atomic_load_explicit(&pool.running, memory_order_acquire); i = next_round(i)) wait_a_little(i);
}

int fi_run(fi_task task, void *argument, const int *sizes, int count, double until, int wait_us) {
    int most = 1, size = 1, step = 0;
    for (int i = 0; i < count; i++)
        if (sizes[i] > most) most = sizes[i];
    if (most < 2 || !fi_try_lock(&pool.busy)) {
        do task(argument, step, (fi_team){0, 1});
        while (++step < count && fi_seconds() < until);
        return step;
    }
    if (pool.openmp.parallel) {
        step = fi_run_openmp(&pool.openmp, task, argument, sizes, count, most, until);
        fi_unlock(&pool.busy);
        return step;
    }
    most = grow(most);
    pool.task = task;
    pool.argument = argument;
    const double start = fi_seconds();
    do {
        do size = gather(size, most);
        while (size < most && us_since(start) < wait_us);
        call(step, size < sizes[step] ? size : sizes[step]);
    } while (++step < count && fi_seconds() < until);
    dismiss(most);
    fi_unlock(&pool.busy);
    return step;
}

void fi_use_openmp(const fi_openmp *openmp) {
    fi_lock(&pool.busy);
    heed_forks();
    pool.openmp = openmp ? *openmp : (fi_openmp){0};
    fi_unlock(&pool.busy);
}

int fi_uses_openmp(void) {
    fi_lock(&pool.busy);
    const int uses = pool.openmp.parallel != NULL;
    fi_unlock(&pool.busy);
    return uses;
}
