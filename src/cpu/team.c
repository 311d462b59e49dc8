/* The threads that kernels run on.
 *
 * This is not OpenMP, for four reasons. libgomp's threads spin for milliseconds after each call, which slows everything else in
 * the process. A barrier among them costs a scheduler tick of 4 ms whenever two threads share one CPU. Its settings can only be
 * made in the environment before the process starts. A forked child that meets a barrier hangs. Here waiting threads spin for
 * about 50 us, then let others run, then sleep; a child of fork() starts a pool of its own.
 *
 * The process has one pool, which grows on demand. A caller that finds it busy runs alone: results do not depend on the team.
 */
#include <stdatomic.h>

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
    SPINS = 2000, /* executions of RELAX, about 50 us: fewer miss the next call of a busy caller, more burn CPU time of other threads */
    /* calls of fi_yield, 5 ms and more. A wait then sleeps in short naps: the thread that runs instead may not be the one waited for.
       A waiting thread of a higher, real-time priority would otherwise yield to itself for ever. */
    YIELDS = 10000,
    NAP_US = 50, /* us of a nap */
};

typedef struct {
    _Alignas(64) atomic_uint call; /* number of the last call given to this worker */
    atomic_int asleep;
    fi_mutex mutex;
    fi_condition wake;
} worker;

static struct {
    fi_mutex busy; /* held by the caller whose team is running */
    worker workers[MOST_THREADS];
    int started; /* workers of ranks 1 to `started` exist */
    int size;
    fi_task task;
    void *argument;
    _Alignas(64) atomic_int running; /* workers that have not finished */
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

FI_THREAD(work, argument) {
    worker *w = argument;
    const int rank = (int)(w - pool.workers);
    unsigned seen = 0;
    for (;;) {
        for (int i = 0; i < SPINS && atomic_load_explicit(&w->call, memory_order_acquire) == seen; i++) RELAX();
        if (atomic_load(&w->call) == seen) {
            fi_lock(&w->mutex);
            atomic_store(&w->asleep, 1);
            while (atomic_load(&w->call) == seen) fi_wait(&w->wake, &w->mutex);
            atomic_store(&w->asleep, 0);
            fi_unlock(&w->mutex);
        }
        seen = atomic_load(&w->call);
        pool.task(pool.argument, (fi_team){rank, pool.size});
        atomic_fetch_sub_explicit(&pool.running, 1, memory_order_release);
    }
    return 0;
}

/* Empty the pool in the child of a fork: it has none of these threads, and a lock held by one of them would stay locked. */
static void forget(void) {
    pool.started = 0;
    atomic_store(&pool.arrived, 0);
    fi_mutex_init(&pool.busy);
}

/* Start the workers up to rank size - 1. Returns the size of the team, which is smaller where the system refuses threads. */
static int grow(int size) {
    static int registered;
    if (!registered) registered = fi_at_fork(forget);
    if (size > MOST_THREADS) size = MOST_THREADS;
    while (pool.started < size - 1) {
        worker *w = &pool.workers[pool.started + 1];
        atomic_store(&w->call, 0);
        atomic_store(&w->asleep, 0);
        fi_mutex_init(&w->mutex);
        fi_condition_init(&w->wake);
        if (!fi_start(work, w)) return pool.started + 1;
        pool.started++;
    }
    return size;
}

void fi_run(fi_task task, void *argument, int size) {
    if (size < 2 || !fi_try_lock(&pool.busy)) {
        task(argument, (fi_team){0, 1});
        return;
    }
    size = grow(size);
    pool.task = task;
    pool.argument = argument;
    pool.size = size;
    atomic_store(&pool.running, size - 1);
    for (int rank = 1; rank < size; rank++) {
        worker *w = &pool.workers[rank];
        atomic_fetch_add(&w->call, 1);
        if (atomic_load(&w->asleep)) {
            fi_lock(&w->mutex);
            fi_signal(&w->wake);
            fi_unlock(&w->mutex);
        }
    }
    task(argument, (fi_team){0, size});
    for (int i = 0; atomic_load_explicit(&pool.running, memory_order_acquire); i = next_round(i)) wait_a_little(i);
    fi_unlock(&pool.busy);
}
