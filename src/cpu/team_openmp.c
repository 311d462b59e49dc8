/* Steps on the threads of an OpenMP library, for a host whose other libraries compute on these threads.
 *
 * It calls the functions that gcc makes of `#pragma omp parallel`, by the addresses that threads.py finds. So the compiler needs no
 * OpenMP, and the module is linked with no library of it: it takes the one that the host has loaded, whatever its file is called. Those
 * that PyTorch and scikit-learn bring have different names, so a module that is linked with libgomp.so.1 would bring one more pool.
 * LLVM's and Intel's libraries have the same functions.
 *
 * One region lasts for all steps of a run, since libgomp ends threads when a region is smaller than the one before. Threads that a step
 * does not need wait at its end. A caller inside a region of the host gets one thread.
 */
#include "kernels.h"
#include "platform.h"

typedef struct {
    const fi_openmp *openmp;
    fi_task task;
    void *argument;
    const int *sizes;
    int count;
    double until;
    int steps;   /* that ran */
    int late[2]; /* whether the time was up after an even and an odd step; thread 0 writes it before the barrier, others read it after */
} job;

static void work(void *argument) {
    job *j = argument;
    const int rank = j->openmp->rank(), all = j->openmp->size();
    for (int step = 0;; step++) {
        const int size = j->sizes[step] < all ? j->sizes[step] : all;
        if (rank < size) j->task(j->argument, step, (fi_team){rank, size});
        if (rank == 0) j->steps = step + 1;
        if (step + 1 == j->count) return;
        if (rank == 0) j->late[step & 1] = fi_seconds() >= j->until;
        j->openmp->barrier();
        if (j->late[step & 1]) return;
    }
}

int fi_run_openmp(const fi_openmp *openmp, fi_task task, void *argument, const int *sizes, int count, int most, double until) {
    job j = {openmp, task, argument, sizes, count, until, 0, {0, 0}};
    openmp->parallel(work, &j, (unsigned)most, 0);
    return j.steps;
}
