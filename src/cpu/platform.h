/* What this project needs of the operating system beyond C11: threads, aligned memory and a clock, as POSIX and Windows have them. */
#ifndef FI_PLATFORM_H
#define FI_PLATFORM_H

#include <stddef.h>

enum { FI_ALIGNMENT = 64 }; /* bytes */

#if defined(_WIN32)

#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <malloc.h>
#include <windows.h>

/* FI_ALIGNMENT-aligned bytes, or NULL. */
static inline void *fi_allocate(size_t size) { return _aligned_malloc(size, FI_ALIGNMENT); }
static inline void fi_free(void *data) { _aligned_free(data); }

/* Seconds since some time that stays the same. */
static inline double fi_seconds(void) {
    LARGE_INTEGER count, frequency;
    QueryPerformanceCounter(&count);
    QueryPerformanceFrequency(&frequency);
    return (double)count.QuadPart / (double)frequency.QuadPart;
}

#define FI_MUTEX_INIT SRWLOCK_INIT
typedef SRWLOCK fi_mutex;
typedef CONDITION_VARIABLE fi_condition;

static inline void fi_mutex_init(fi_mutex *m) { InitializeSRWLock(m); }
static inline void fi_lock(fi_mutex *m) { AcquireSRWLockExclusive(m); }
static inline int fi_try_lock(fi_mutex *m) { return TryAcquireSRWLockExclusive(m); } /* whether it is locked now */
static inline void fi_unlock(fi_mutex *m) { ReleaseSRWLockExclusive(m); }
static inline void fi_condition_init(fi_condition *c) { InitializeConditionVariable(c); }
static inline void fi_wait(fi_condition *c, fi_mutex *m) { SleepConditionVariableSRW(c, m, INFINITE, 0); }
static inline void fi_signal(fi_condition *c) { WakeConditionVariable(c); }
static inline void fi_yield(void) { SwitchToThread(); }
static inline void fi_nap(int us) { Sleep((DWORD)(us + 999) / 1000); }

#define FI_THREAD(name, argument) static DWORD WINAPI name(LPVOID argument)
/* Run a function that FI_THREAD declares on a thread of its own. Returns whether the system gave one. */
static inline int fi_start(LPTHREAD_START_ROUTINE run, void *argument) {
    HANDLE thread = CreateThread(NULL, 0, run, argument, 0, NULL);
    return thread != NULL && CloseHandle(thread);
}
/* Run in_child in the child of each later fork(). Returns whether that is arranged; Windows has no fork(). */
static inline int fi_at_fork(void (*in_child)(void)) { return in_child != NULL; }

#else

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

static inline void *fi_allocate(size_t size) {
    void *data;
    return posix_memalign(&data, FI_ALIGNMENT, size) ? NULL : data;
}
static inline void fi_free(void *data) { free(data); }

static inline double fi_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

#define FI_MUTEX_INIT PTHREAD_MUTEX_INITIALIZER
typedef pthread_mutex_t fi_mutex;
typedef pthread_cond_t fi_condition;

static inline void fi_mutex_init(fi_mutex *m) { pthread_mutex_init(m, NULL); }
static inline void fi_lock(fi_mutex *m) { pthread_mutex_lock(m); }
static inline int fi_try_lock(fi_mutex *m) { return pthread_mutex_trylock(m) == 0; }
static inline void fi_unlock(fi_mutex *m) { pthread_mutex_unlock(m); }
static inline void fi_condition_init(fi_condition *c) { pthread_cond_init(c, NULL); }
static inline void fi_wait(fi_condition *c, fi_mutex *m) { pthread_cond_wait(c, m); }
static inline void fi_signal(fi_condition *c) { pthread_cond_signal(c); }
static inline void fi_yield(void) { sched_yield(); }
static inline void fi_nap(int us) { nanosleep(&(struct timespec){.tv_nsec = 1000L * us}, NULL); }

#define FI_THREAD(name, argument) static void *name(void *argument)
static inline int fi_start(void *(*run)(void *), void *argument) {
    pthread_t thread;
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    const int failed = pthread_create(&thread, &detached, run, argument);
    pthread_attr_destroy(&detached);
    return !failed;
}
static inline int fi_at_fork(void (*in_child)(void)) { return pthread_atfork(NULL, NULL, in_child) == 0; }

#endif /* POSIX */

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

/* The CPUs that a thread may run on, a bit for each. */
typedef struct {
    unsigned long bits[1024 / (8 * sizeof(unsigned long))];
    long bytes; /* those of the system's own mask */
} fi_cpus;

static inline int fi_thread_number(void) { return (int)syscall(SYS_gettid); }

/* The CPUs that the caller may run on, but for the one that it is on. Returns whether there are any, and the system says so. */
static inline int fi_other_cpus(fi_cpus *others) {
    enum { WORD = 8 * sizeof(unsigned long), WORDS = sizeof others->bits / sizeof(unsigned long) };
    unsigned long any = 0;
    unsigned cpu = 0;
    *others = (fi_cpus){{0}, 0};
    others->bytes = syscall(SYS_sched_getaffinity, 0, sizeof others->bits, others->bits);
    if (others->bytes <= 0 || syscall(SYS_getcpu, &cpu, NULL, NULL) || cpu >= WORD * WORDS) return 0;
    others->bits[cpu / WORD] &= ~(1UL << cpu % WORD);
    for (int i = 0; i < WORDS; i++) any |= others->bits[i];
    return any != 0;
}

static inline void fi_set_cpus(int thread, const fi_cpus *cpus) { syscall(SYS_sched_setaffinity, thread, (size_t)cpus->bytes, cpus->bits); }
#else
typedef char fi_cpus; /* elsewhere nothing is known of CPUs */
static inline int fi_thread_number(void) { return 0; }
static inline int fi_other_cpus(fi_cpus *others) { return *others = 0; }
static inline void fi_set_cpus(int thread, const fi_cpus *cpus) { (void)thread, (void)cpus; }
#endif
#endif
