# cython: language_level=3, binding=True, embedsignature=False
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True, autotestdict=False
"""The driver: from NumPy arrays to the kernels.

One door for each pass. Plain arrays (C-contiguous, aligned, native, normalized over the last axis) go straight to the
kernels; everything else goes through the planning in functional.py and comes back to `forward` and `backward` below.
Here are no axes, no formulas and no instruction sets: pointers, strides, threads.
"""

cimport numpy as cnp
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cython.parallel cimport prange
from libc.math cimport NAN, isfinite
from libc.stddef cimport ptrdiff_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

import operator
import os
import threading

import numpy as np

from .properties import describe

cnp.import_array()
cnp.import_ufunc()


cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    #define LNORM_OPENMP _OPENMP
    #else
    #define LNORM_OPENMP 0
    static int omp_get_max_threads(void) { return 1; }
    static int omp_get_num_procs(void) { return 1; }
    #endif

    /* libgomp hangs in a forked child whose parent's thread had a team, in a parallel region and when that thread ends: the
       team goes before the fork, and the child gets none. Not Python's hooks: C code forks too. */
    static int lnorm_forked = 0;
    #ifndef _WIN32
    #include <pthread.h>
    static void lnorm_before_fork(void)
    {
    #if defined(_OPENMP) && __GNUC__ >= 9 /* libgomp, not clang's runtime, which looks after itself */
        omp_pause_resource_all(omp_pause_soft);
    #endif
    }
    static void lnorm_in_child(void) { lnorm_forked = 1; }
    static int lnorm_watch_forks(void) { return pthread_atfork(lnorm_before_fork, 0, lnorm_in_child); }
    #else
    static int lnorm_watch_forks(void) { return 0; }
    #endif
    """
    int LNORM_OPENMP
    int omp_get_max_threads() noexcept nogil
    int omp_get_num_procs() noexcept nogil
    int lnorm_forked
    int lnorm_watch_forks() noexcept


cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept nogil
    long PyLong_AsLongAndOverflow(object, int *) noexcept


cdef extern from "kernels/fpenv.h" nogil:
    ctypedef struct lnorm_fpenv:
        pass
    lnorm_fpenv lnorm_fp_enter() noexcept
    void lnorm_fp_leave(lnorm_fpenv) noexcept


cdef extern from "kernels/kernels.h" nogil:
    enum:
        LNORM_MAXDIMS
        LNORM_BLOCK
        LNORM_STRIP
        LNORM_SEGMENT
        LNORM_SUMS_BYTES
        LNORM_X
        LNORM_SCALE
        LNORM_OFFSET
        LNORM_Y
        LNORM_GRAD
        LNORM_OPERANDS
        LNORM_DY
        LNORM_DX

    ctypedef struct lnorm_operand:
        char *data
        ptrdiff_t outer[64]
        ptrdiff_t inner[64]
        bint contiguous
        bint block

    ctypedef struct lnorm_job:
        int outer_ndim
        int inner_ndim
        ptrdiff_t outer_shape[64]
        ptrdiff_t inner_shape[64]
        ptrdiff_t n
        ptrdiff_t size
        double epsilon
        double *mean
        double *rstd
        bint columns
        bint stream
        bint in_turn
        lnorm_operand op[5]

    ctypedef struct lnorm_row:
        pass

    ctypedef struct lnorm_kernels:
        void (*forward)(const lnorm_job *, ptrdiff_t, ptrdiff_t) noexcept nogil
        void (*long_sums)(const lnorm_job *, ptrdiff_t, ptrdiff_t, ptrdiff_t, void *) noexcept nogil
        void (*long_stats)(const lnorm_job *, ptrdiff_t, ptrdiff_t, const void *, lnorm_row *) noexcept nogil
        void (*long_write)(const lnorm_job *, ptrdiff_t, ptrdiff_t, ptrdiff_t, const lnorm_row *) noexcept nogil
        void (*backward_sums)(const lnorm_job *, ptrdiff_t, ptrdiff_t, lnorm_row *) noexcept nogil
        void (*backward_sweep)(const lnorm_job *, ptrdiff_t, ptrdiff_t, const lnorm_row *, ptrdiff_t, ptrdiff_t,
                               double *, double *) noexcept nogil
        void (*backward_in_turn)(const lnorm_job *, ptrdiff_t, ptrdiff_t, double *, double *) noexcept nogil

    ctypedef struct lnorm_isa:
        const char *name
        bint (*runnable)() noexcept
        lnorm_kernels float32
        lnorm_kernels float64

    int lnorm_strip(ptrdiff_t, ptrdiff_t) noexcept
    const lnorm_isa lnorm_isas[]
    const int lnorm_isa_count
    bint lnorm_takes_turns() noexcept
    void lnorm_add_partial(const lnorm_job *, ptrdiff_t, ptrdiff_t, const double *, double *, ptrdiff_t, ptrdiff_t) noexcept
    const char *lnorm_compiler()


# --- which kernels -------------------------------------------------------------------------------------------------

cdef const lnorm_isa *isa = NULL


def instruction_sets():
    """(compiled in, runnable here, in use), best first."""
    compiled = [lnorm_isas[i].name.decode() for i in range(lnorm_isa_count)]
    runnable = [lnorm_isas[i].name.decode() for i in range(lnorm_isa_count) if lnorm_isas[i].runnable()]
    return compiled, runnable, isa.name.decode() if isa is not NULL else None


def compiler():
    """The C compiler that built the kernels."""
    return lnorm_compiler().decode()


def openmp():
    """The date of the OpenMP specification (yyyymm) that the driver was built with; 0 without OpenMP."""
    return LNORM_OPENMP


def use_instruction_set(wanted):
    """For every call from now on; None for the best. The environment decides at import, and the self-test tries them all."""
    global isa
    compiled, runnable, _ = instruction_sets()
    wanted = wanted or runnable[0]
    if wanted not in runnable:
        what = "cannot run on this CPU" if wanted in compiled else "is not known"
        raise ImportError(f"LNORM_ISA={wanted!r} {what}; valid here: {', '.join(runnable)}")
    isa = &lnorm_isas[compiled.index(wanted)]


use_instruction_set(os.environ.get("LNORM_ISA"))

cdef bint in_turn = lnorm_takes_turns()


def write_in_turn(wanted):
    """Whether, from now on, a row that goes around the caches is written while the next is summed; None for what suits this
    processor. Both ways give the same bits, as tests check. Returns whether it was so."""
    global in_turn
    was = in_turn
    in_turn = lnorm_takes_turns() if wanted is None else wanted
    return was


cdef inline const lnorm_kernels *kernels_of(int typenum) noexcept nogil:
    return &isa.float32 if typenum == cnp.NPY_FLOAT32 else &isa.float64


# --- how many threads ----------------------------------------------------------------------------------------------

# A parallel region costs some microseconds, more where the cores are busy: below so many elements one thread is faster.
cdef enum:
    PARALLEL_ELEMENTS = 1 << 16
    NOGIL_ELEMENTS = 1 << 14  # some microseconds: what giving the GIL away and taking it back may cost

cdef int threads_requested = 0  # by set_num_threads or LNORM_NUM_THREADS; 0: none
cdef int threads_limit = 1      # CPUs of the cgroup quota, read at import
cdef unsigned long main_thread = threading.main_thread().ident


cdef int cpus() noexcept nogil:
    """CPUs of the affinity mask as it is now (with OMP_PROC_BIND, which narrows it, as it was) and of the quota."""
    return min(omp_get_num_procs(), threads_limit)


cdef int num_threads() noexcept nogil:
    if lnorm_forked or not LNORM_OPENMP:
        return 1
    if threads_requested:
        return threads_requested
    if PyThread_get_thread_ident() != main_thread:  # libgomp gives each Python thread a pool of its own
        return 1
    return max(1, min(omp_get_max_threads(), cpus()))


def get_num_threads():
    """Threads that a call from the calling thread may use.

    Returns
    -------
    int
        The number given to `set_num_threads` or ``LNORM_NUM_THREADS``. Without one: OpenMP's number
        (``OMP_NUM_THREADS``, threadpoolctl), but never more than the CPUs of the affinity mask and the cgroup quota, and 1
        off the main thread. Always 1 in a forked child and in a build without OpenMP.

    Examples
    --------
    >>> import lnorm
    >>> lnorm.get_num_threads() >= 1
    True
    """
    return num_threads()


def set_num_threads(n):
    """Set the number of threads for all later calls, from any Python thread.

    The results do not depend on it, to the last bit.

    Parameters
    ----------
    n : int or None
        At least 1. None brings back the default, see `get_num_threads`.

    Raises
    ------
    TypeError
        If `n` is neither an int nor None.
    ValueError
        If `n` is less than 1.

    Examples
    --------
    >>> import lnorm
    >>> lnorm.set_num_threads(1)
    >>> lnorm.get_num_threads()
    1
    >>> lnorm.set_num_threads(None)
    """
    global threads_requested
    if n is None:
        threads_requested = 0
        return
    try:
        value = operator.index(n)
    except TypeError:
        raise TypeError(f"n must be an int of at least 1, or None for the default, got {describe(n)}") from None
    if not 1 <= value <= 0x7FFF:
        raise ValueError(f"n must be from 1 to {0x7FFF}, or None for the default, got {describe(n)}")
    threads_requested = value


def decided_by():
    """What `get_num_threads` comes from, in the calling thread."""
    if not LNORM_OPENMP:
        return "build without OpenMP"
    if lnorm_forked:
        return "forked child"
    if threads_requested:
        return "set_num_threads or LNORM_NUM_THREADS"
    if PyThread_get_thread_ident() != main_thread:
        return "not the main thread"
    return "OpenMP" if omp_get_max_threads() <= cpus() else "affinity mask or cgroup quota"


def limit_threads(int n):
    """Never use more than n threads by default."""
    global threads_limit
    threads_limit = n


def forbid_threads():
    """One thread from now on, as in a forked child."""
    global lnorm_forked
    lnorm_forked = True


if lnorm_watch_forks() != 0:
    raise MemoryError("lnorm: no memory for the functions that a fork calls")


# --- the jobs ------------------------------------------------------------------------------------------------------

# What an absent scale and offset are: one block that serves every row.
cdef object ones_f32 = np.ones(2 * LNORM_BLOCK, np.float32), ones_f64 = np.ones(2 * LNORM_BLOCK, np.float64)
cdef object zeros_f32 = np.zeros(2 * LNORM_BLOCK, np.float32), zeros_f64 = np.zeros(2 * LNORM_BLOCK, np.float64)
cdef char *ones_float32 = <char *>cnp.PyArray_DATA(ones_f32)
cdef char *ones_float64 = <char *>cnp.PyArray_DATA(ones_f64)
cdef char *zeros_float32 = <char *>cnp.PyArray_DATA(zeros_f32)
cdef char *zeros_float64 = <char *>cnp.PyArray_DATA(zeros_f64)

# Above so many bytes read and written, the result is written around the caches: it would push itself out of them. What the
# system says of its last level is no guide: shared, or virtual, it is smaller. (Measured on Zen 4: between 8 and 32 MiB
# both ways take the same time.)
cdef enum:
    STREAM_BYTES = 16 << 20
    STREAM_RUN_BYTES = 1 << 10   # the ends of what stands side by side, parts of a cache line, are not streamed,
    STREAM_ROW_BYTES = 1 << 9    # but for rows end to end, which share these lines; shorter ones wait for more than they save,
    STREAM_LINES_BYTES = 1 << 6  # but for rows of whole lines
    STREAM_SWEPT_BYTES = 1 << 7  # (in the backward pass with gradients, where four rows wait at once; else they do not pay)


cdef void choose_way(lnorm_job *job, int arrays, ptrdiff_t itemsize, ptrdiff_t shortest) noexcept nogil:
    """How a job goes to memory that reads and writes so many arrays as large as x. Its result goes around the caches, also that
    of rows which stand end to end, from the shortest on (bytes); forward in place, it does not. What is asked for long before
    are the next bytes of memory, of which half at least have to be of rows."""
    cdef int last = job.outer_ndim - 1
    cdef bint far = arrays * job.size > STREAM_BYTES
    cdef ptrdiff_t run = itemsize * (job.outer_shape[last] if job.columns else job.n)
    cdef ptrdiff_t step = run if last < 0 or job.columns else job.op[<int>LNORM_X].outer[last]
    job.in_turn = far and in_turn and 0 < step <= 2 * run
    job.stream = far and (run >= STREAM_RUN_BYTES or (
        run >= shortest and (run >= STREAM_ROW_BYTES or run % STREAM_LINES_BYTES == 0) and not job.columns and last >= 0 and
        step == run and job.op[<int>LNORM_Y].outer[last] == run))
    if arrays == 2 and job.op[<int>LNORM_X].data == job.op[<int>LNORM_Y].data:
        job.stream = False


cdef enum:
    HUGE_PAGE = 1 << 21   # bytes
    HUGE_ARRAY = 1 << 22  # bytes from which on NumPy asks for huge pages


cdef void map_pages(cnp.ndarray result) noexcept:
    """Asks for the memory of a new result, from the last byte of each huge page: Linux (process_huge_page) clears first what
    lies farthest from the byte that is asked for, and upwards it takes 60 % of the time of downwards."""
    cdef char *data = <char *>cnp.PyArray_DATA(result)
    cdef ptrdiff_t begin = -<ptrdiff_t>data & (HUGE_PAGE - 1), page, pages
    cdef int threads
    if cnp.PyArray_NBYTES(result) < HUGE_ARRAY:
        return
    pages = (cnp.PyArray_NBYTES(result) - begin) // HUGE_PAGE
    threads = num_threads()
    with nogil:
        for page in prange(pages, num_threads=threads, schedule="static", use_threads_if=threads > 1):
            data[begin + (page + 1) * HUGE_PAGE - 1] = 0


def mapped(cnp.ndarray result not None):
    """A new array, whose elements stand side by side in memory in some order."""
    map_pages(result)
    return result


cdef inline void set_rows(lnorm_job *job, int k, char *data, ptrdiff_t outer, ptrdiff_t inner) noexcept nogil:
    """Operand k of a job with one outer and one inner dimension."""
    job.op[k].data = data
    job.op[k].outer[0] = outer
    job.op[k].inner[0] = inner
    job.op[k].contiguous = True
    job.op[k].block = False


cdef inline void set_absent(lnorm_job *job, int k, int typenum) noexcept nogil:
    """No scale is a scale of ones, no offset is an offset of zeros."""
    cdef int d
    if k == LNORM_SCALE:
        job.op[k].data = ones_float32 if typenum == cnp.NPY_FLOAT32 else ones_float64
    else:
        job.op[k].data = zeros_float32 if typenum == cnp.NPY_FLOAT32 else zeros_float64
    for d in range(job.outer_ndim):
        job.op[k].outer[d] = 0
    job.op[k].contiguous = False
    job.op[k].block = True


cdef inline bint mergeable(ptrdiff_t **strides, int a, int b, ptrdiff_t size_b) noexcept:
    cdef int k
    for k in range(LNORM_OPERANDS):
        if strides[k] != NULL and strides[k][a] != strides[k][b] * size_b:
            return False
    return True


cdef int merge(ptrdiff_t *shape, ptrdiff_t **strides, int begin, int end, ptrdiff_t *out_shape,
               ptrdiff_t **out_strides) noexcept:
    """Dimensions begin <= d < end, those of size 1 left out and neighbours made one where every operand allows it."""
    cdef int d, k, last = -1, ndim = 0
    for d in range(begin, end):
        if shape[d] == 1:
            continue
        if last >= 0 and mergeable(strides, last, d, shape[d]):
            out_shape[ndim - 1] *= shape[d]
        else:
            out_shape[ndim] = shape[d]
            ndim += 1
        for k in range(LNORM_OPERANDS):
            if strides[k] != NULL:
                out_strides[k][ndim - 1] = strides[k][d]
        last = d
    return ndim


cdef bint lies_in_columns(const lnorm_job *job, ptrdiff_t itemsize, bint backward) noexcept:
    """Whether rows stand across memory, observations side by side, at least a cache line of them."""
    cdef int k, last = job.outer_ndim - 1
    cdef bint shared
    if last < 0 or job.inner_ndim != 1 or job.outer_shape[last] * itemsize < 64 or not job.op[<int>LNORM_GRAD].contiguous:
        return False
    for k in range(LNORM_GRAD):
        shared = k == LNORM_SCALE or (k == LNORM_OFFSET and not backward)
        if job.op[k].outer[last] != (0 if shared else itemsize):
            return False
    return True


cdef int fill_job(lnorm_job *job, list arrays, list order, int core, grad_strides) except -1:
    """A job over x and arrays that broadcast to it, its axes in this order, the last `core` of which are normalized. An
    absent array is None. grad_strides stand in the order already."""
    cdef cnp.ndarray x = arrays[LNORM_X], a
    cdef int k, d, axis, ndim = cnp.PyArray_NDIM(x)
    cdef ptrdiff_t size
    cdef ptrdiff_t shape[64]
    cdef ptrdiff_t steps[5][64]
    cdef ptrdiff_t *strides[5]
    cdef ptrdiff_t *outer[5]
    cdef ptrdiff_t *inner[5]
    for d in range(ndim):
        shape[d] = cnp.PyArray_DIM(x, order[d])
    for k in range(LNORM_OPERANDS):
        strides[k] = NULL
        outer[k] = job.op[k].outer
        inner[k] = job.op[k].inner
        job.op[k].data = NULL
        job.op[k].block = False
        if k != LNORM_GRAD and arrays[k] is not None:
            a = arrays[k]
            for d in range(ndim):
                axis = <int>order[d] - ndim + cnp.PyArray_NDIM(a)
                steps[k][d] = 0 if axis < 0 or cnp.PyArray_DIM(a, axis) == 1 else cnp.PyArray_STRIDE(a, axis)
            strides[k] = steps[k]
            job.op[k].data = <char *>cnp.PyArray_DATA(a)
    if grad_strides is not None:
        for d in range(ndim):
            steps[<int>LNORM_GRAD][d] = grad_strides[d]
        strides[<int>LNORM_GRAD] = steps[<int>LNORM_GRAD]
    job.outer_ndim = merge(shape, strides, 0, ndim - core, job.outer_shape, outer)
    job.inner_ndim = merge(shape, strides, ndim - core, ndim, job.inner_shape, inner)
    job.n = 1
    for d in range(job.inner_ndim):
        job.n *= job.inner_shape[d]
    job.size = cnp.PyArray_NBYTES(x)
    for k in range(LNORM_OPERANDS):
        job.op[k].contiguous = True
        if strides[k] == NULL:
            for d in range(job.outer_ndim):
                job.op[k].outer[d] = 0
            for d in range(job.inner_ndim):
                job.op[k].inner[d] = 0
            if k == LNORM_SCALE or k == LNORM_OFFSET:
                set_absent(job, k, cnp.PyArray_TYPE(x))
            continue
        size = 1 if k == LNORM_GRAD else cnp.PyArray_ITEMSIZE(x)
        for d in range(job.inner_ndim - 1, -1, -1):
            if job.op[k].inner[d] != size:
                job.op[k].contiguous = False
            size *= job.inner_shape[d]
    job.columns = lies_in_columns(job, cnp.PyArray_ITEMSIZE(x), grad_strides is not None)
    job.mean = job.rstd = NULL
    job.stream = job.in_turn = False
    return 0


# What the threads of a team do, each in the default floating-point environment, which they need not have inherited.

cdef void forward_task(const lnorm_job *job, const lnorm_kernels *kernels, ptrdiff_t first, ptrdiff_t last) noexcept nogil:
    cdef lnorm_fpenv host = lnorm_fp_enter()
    kernels.forward(job, first, last)
    lnorm_fp_leave(host)


cdef void long_sums_task(const lnorm_job *job, const lnorm_kernels *kernels, ptrdiff_t i, ptrdiff_t first, ptrdiff_t last,
                         void *sums) noexcept nogil:
    cdef lnorm_fpenv host = lnorm_fp_enter()
    kernels.long_sums(job, i, first, last, sums)
    lnorm_fp_leave(host)


cdef enum:
    LONG_ROWS = 4                # rows that are summed before they are written
    STRETCH = 16 * LNORM_BLOCK   # elements of each that are written in turn
    LONG = 1 << 20               # elements from which on that pays: a row and what it shares do not fit the caches


cdef void long_write_task(const lnorm_job *job, const lnorm_kernels *kernels, ptrdiff_t first, ptrdiff_t last, ptrdiff_t begin,
                          ptrdiff_t end, const lnorm_row *rows) noexcept nogil:
    """Columns of some rows, a stretch of each in turn: what they share of scale and offset is read once."""
    cdef ptrdiff_t i, stop
    cdef lnorm_fpenv host = lnorm_fp_enter()
    while begin < end:
        stop = min(begin + STRETCH if last - first > 1 else end, end)
        for i in range(first, last):
            kernels.long_write(job, i, begin, stop, &rows[i - first])
        begin = stop
    lnorm_fp_leave(host)


cdef bint is_shared(const lnorm_operand *op, int outer_ndim) noexcept nogil:
    """Whether all observations have this operand in common."""
    cdef int d
    for d in range(outer_ndim):
        if op.outer[d] != 0:
            return False
    return True


cdef bint is_long(const lnorm_job *job, ptrdiff_t observations) noexcept nogil:
    """Whether rows do not fit the caches, so that what they share is better read for several."""
    return (job.stream and observations > 1 and job.n >= LONG and is_shared(&job.op[<int>LNORM_SCALE], job.outer_ndim) and
            is_shared(&job.op[<int>LNORM_OFFSET], job.outer_ndim))


cdef bint long_rows(const lnorm_job *job, const lnorm_kernels *kernels, ptrdiff_t observations, int threads) noexcept:
    """Long rows, each of which the threads share. False, and nothing is done, without memory."""
    cdef ptrdiff_t segments = (job.n + LNORM_SEGMENT - 1) // LNORM_SEGMENT, i, first = 0, last
    cdef int t, shares = <int>min(<ptrdiff_t>threads, segments)
    cdef lnorm_row rows[LONG_ROWS]
    cdef char *sums = <char *>malloc(segments * LNORM_SUMS_BYTES)
    if sums == NULL:
        return False
    # Here and not in a nogil function, where Cython asks PyGILState_Check, which is wrong beside sub-interpreters.
    with nogil:
        while first < observations:
            last = min(first + LONG_ROWS, observations)
            for i in range(first, last):
                for t in prange(shares, num_threads=shares, schedule="static", chunksize=1, use_threads_if=shares > 1):
                    long_sums_task(job, kernels, i, segments * t // shares, segments * (t + 1) // shares, sums)
                kernels.long_stats(job, i, segments, sums, &rows[i - first])
            for t in prange(shares, num_threads=shares, schedule="static", chunksize=1, use_threads_if=shares > 1):
                long_write_task(job, kernels, first, last, segments * t // shares * LNORM_SEGMENT,
                                min(segments * (t + 1) // shares * LNORM_SEGMENT, job.n), rows)
            first = last
    free(sums)
    return True


cdef void run_forward(const lnorm_job *job, const lnorm_kernels *kernels, ptrdiff_t observations) noexcept:
    cdef ptrdiff_t elements = observations * job.n
    cdef int t, threads = num_threads() if elements >= PARALLEL_ELEMENTS else 1
    cdef lnorm_fpenv host = lnorm_fp_enter()
    if elements < NOGIL_ELEMENTS:
        kernels.forward(job, 0, observations)
    elif not (job.n > LNORM_SEGMENT and (observations < threads or is_long(job, observations)) and
              long_rows(job, kernels, observations, threads)):
        threads = <int>min(<ptrdiff_t>threads, observations)
        with nogil:
            if threads == 1:
                kernels.forward(job, 0, observations)
            else:
                for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                    forward_task(job, kernels, observations * t // threads, observations * (t + 1) // threads)
    lnorm_fp_leave(host)


def forward(cnp.ndarray x not None, scale, offset, cnp.ndarray y not None, mean, rstd, list order not None, int core,
            double epsilon, bint copied):
    """Planned arrays of one native, aligned dtype: x and y of one shape, scale and offset that broadcast to it, or None. Of
    the axes in this order, the last `core` are normalized; mean and rstd are float64 in C order of the others, or None.
    With `copied`, x is any array of that shape, and goes to y first."""
    cdef lnorm_job job
    cdef cnp.ndarray source = x
    if copied:
        x = y
    fill_job(&job, [x, scale, offset, y], order, core, None)
    job.epsilon = epsilon
    if mean is not None:
        set_statistics(&job, mean, rstd)
    choose_way(&job, 2, cnp.PyArray_ITEMSIZE(x), STREAM_LINES_BYTES)
    if copied:
        cnp.PyArray_CopyInto(y, source)
    run_forward(&job, kernels_of(cnp.PyArray_TYPE(x)), cnp.PyArray_SIZE(x) // job.n)


# --- the backward pass ---------------------------------------------------------------------------------------------

# The parameters' gradient is summed over blocks of observations whose size depends on the shape alone, so the bits do not depend
# on the threads. At most BLOCKS of at least BLOCK_ROWS each, fewer for long rows: their partial sums stay below 4 MiB.
# Rows of more than CHUNK columns are summed CHUNK columns at a time.
cdef enum:
    BLOCKS = 256
    BLOCK_ROWS = 64
    CHUNK = 1 << 13
    PARTIAL_DOUBLES = 1 << 19
    BATCH_ROWS = 64          # between the two sweeps of a block, at most,
    BATCH_BYTES = 1 << 17    # and bytes of x: in the second-level cache, so that a sweep reads what is farther or writes it
    IN_TURN_BYTES = 4 * 96   # rows of no more are rather swept together

cdef struct Plan:
    const lnorm_job *job
    const lnorm_kernels *kernels
    lnorm_row *rows              # of all observations when rows are long; else NULL
    ptrdiff_t group              # observations that share their parameters
    ptrdiff_t plane              # observations of it that stand side by side; all of it where none do
    ptrdiff_t unit, units        # observations that one block has all of, BLOCK_ROWS or a strip; how many a plane has
    ptrdiff_t block, blocks      # units in a block, blocks in a group
    ptrdiff_t batch              # observations between the two sweeps of a block
    ptrdiff_t width, chunks      # columns in a chunk, chunks in a row
    bint in_turn                 # dx is written while the next rows are summed
    ptrdiff_t stride             # doubles from one sum over a chunk to the next: whole cache lines


cdef inline bint lie_side_by_side(const lnorm_job *job) noexcept nogil:
    """Whether the elements of all rows do."""
    return (job.op[<int>LNORM_X].contiguous and job.op[<int>LNORM_DY].contiguous and job.op[<int>LNORM_DX].contiguous and
            (job.op[<int>LNORM_SCALE].contiguous or job.op[<int>LNORM_SCALE].block))


cdef inline ptrdiff_t begin_of_unit(const Plan *plan, ptrdiff_t unit) noexcept nogil:
    return unit // plan.units * plan.plane + unit % plan.units * plan.unit


cdef void sweep_task(const Plan *plan, ptrdiff_t task, double *partial) noexcept nogil:
    """One block of observations, one chunk of columns: dx, and the block's sums into partial, if there is one."""
    cdef ptrdiff_t g = task // (plan.blocks * plan.chunks)
    cdef ptrdiff_t c = task // plan.blocks % plan.chunks
    cdef ptrdiff_t b = task % plan.blocks
    cdef ptrdiff_t first = g * plan.group + begin_of_unit(plan, b * plan.block)
    cdef ptrdiff_t last = g * plan.group + min(begin_of_unit(plan, (b + 1) * plan.block), plan.group)
    cdef ptrdiff_t begin = c * plan.width, end = min(begin + plan.width, plan.job.n), stop
    cdef double *dscale = partial
    cdef double *doffset = NULL if partial == NULL else partial + plan.stride
    cdef lnorm_row known[LNORM_STRIP]
    cdef lnorm_row *rows = known
    cdef lnorm_fpenv host = lnorm_fp_enter()
    if partial != NULL:
        memset(partial, 0, 2 * plan.stride * sizeof(double))
    if plan.in_turn:
        plan.kernels.backward_in_turn(plan.job, first, last, dscale, doffset)
        first = last
    while first < last:
        stop = min(last, first + plan.batch, (first // plan.plane + 1) * plan.plane)
        if plan.rows != NULL:
            rows = plan.rows + first
        else:
            plan.kernels.backward_sums(plan.job, first, stop, rows)
        plan.kernels.backward_sweep(plan.job, first, stop, rows, begin, end, dscale, doffset)
        first = stop
    lnorm_fp_leave(host)


cdef void backward_sums_task(const Plan *plan, ptrdiff_t i) noexcept nogil:
    """The sums of one row, or of one strip."""
    cdef ptrdiff_t first = begin_of_unit(plan, i) if plan.job.columns else i
    cdef ptrdiff_t last = min(first + plan.unit, (first // plan.plane + 1) * plan.plane) if plan.job.columns else i + 1
    cdef lnorm_fpenv host = lnorm_fp_enter()
    plan.kernels.backward_sums(plan.job, first, last, plan.rows + first)
    lnorm_fp_leave(host)


cdef inline void write_element(void *to, ptrdiff_t at, double value, int typenum) noexcept nogil:
    """One element of the gradient; every NaN is the same one, whatever made it."""
    if value != value:
        value = NAN
    if typenum == cnp.NPY_FLOAT32:
        (<float *>to)[at] = <float>value
    else:
        (<double *>to)[at] = value


cdef void collect(const Plan *plan, ptrdiff_t task, const double *partial, double *total, ptrdiff_t size,
                  void *dscale, void *doffset, int typenum) noexcept nogil:
    """Add a task's partial sums to the totals, and write these where the task was the last that adds to them."""
    cdef const lnorm_operand *grad = &plan.job.op[LNORM_GRAD]
    cdef ptrdiff_t g = task // (plan.blocks * plan.chunks)
    cdef ptrdiff_t c = task // plan.blocks % plan.chunks
    cdef ptrdiff_t begin = c * plan.width, end = min(begin + plan.width, plan.job.n)
    cdef bint own = grad.contiguous  # each column has an element of the gradient to itself
    cdef ptrdiff_t base = begin if own else 0, length = end - begin if own else size, j, at
    lnorm_add_partial(plan.job, begin, end, partial, total, 2 * size, base)
    lnorm_add_partial(plan.job, begin, end, partial + plan.stride, total + size, 2 * size, base)
    if (task + 1) % plan.blocks or not (own or c == plan.chunks - 1):
        return
    at = g * (plan.job.n if own else size) + base
    for j in range(length):
        write_element(dscale, at + j, total[j] + total[2 * size + j], typenum)
        write_element(doffset, at + j, total[size + j] + total[3 * size + j], typenum)
    memset(total, 0, 4 * size * sizeof(double))


cdef int run_backward(const lnorm_job *job, int typenum, ptrdiff_t observations, ptrdiff_t groups, ptrdiff_t grad_size,
                      void *dscale, void *doffset) except -1:
    """dx, and dscale and doffset unless they are NULL: grad_size elements for each of the groups of observations that
    share their parameters."""
    cdef Plan plan
    cdef int threads = 1
    cdef ptrdiff_t tasks, wave, task, count, total_size = 0, i, itemsize = 4 if typenum == cnp.NPY_FLOAT32 else 8
    cdef void *memory = NULL
    cdef double *partials = NULL
    cdef double *total = NULL
    cdef bint wide = job.n > 2 * CHUNK
    cdef lnorm_fpenv host = lnorm_fp_enter()
    plan.job = job
    plan.kernels = kernels_of(typenum)
    plan.rows = NULL
    plan.group = observations // groups
    plan.width = CHUNK if wide else job.n
    plan.chunks = (job.n + plan.width - 1) // plan.width
    plan.stride = (plan.width + 7) // 8 * 8
    plan.blocks = max(1, min(BLOCKS, PARTIAL_DOUBLES // 2 // plan.width))
    if job.columns:
        plan.plane = job.outer_shape[job.outer_ndim - 1]
        plan.batch = plan.unit = lnorm_strip(plan.plane, itemsize)
    else:
        plan.plane = plan.group
        plan.unit = BLOCK_ROWS
        plan.batch = min(BATCH_ROWS, max(4, BATCH_BYTES // itemsize // job.n // 4 * 4))
    plan.in_turn = (job.stream and job.in_turn and plan.kernels.backward_in_turn != NULL and dscale != NULL and not wide and
                    job.n * itemsize > IN_TURN_BYTES and lie_side_by_side(job))
    plan.units = (plan.plane + plan.unit - 1) // plan.unit
    count = plan.group // plan.plane * plan.units
    plan.block = (count + plan.blocks - 1) // plan.blocks
    plan.blocks = (count + plan.block - 1) // plan.block
    tasks = groups * plan.blocks * plan.chunks
    if observations * job.n >= PARALLEL_ELEMENTS:
        threads = <int>min(<ptrdiff_t>num_threads(), tasks)
    wave = tasks
    if dscale != NULL:
        total_size = min(grad_size, plan.width) if job.op[<int>LNORM_GRAD].contiguous else grad_size
        wave = min(tasks, max(<ptrdiff_t>threads, PARTIAL_DOUBLES // (2 * plan.width)))
    try:
        if wide:
            plan.rows = <lnorm_row *>PyMem_Malloc(observations * sizeof(lnorm_row))
        if dscale != NULL:
            # Whole registers on whole cache lines: where dx is swept from its first line on, the sums of those columns are.
            memory = PyMem_Malloc(wave * 2 * plan.stride * sizeof(double) + 128)
            partials = <double *>((<size_t>memory + 63) & ~<size_t>63)
            if not (job.stream or job.columns) and job.n >= LNORM_BLOCK:
                partials += (<size_t>job.op[<int>LNORM_DX].data // itemsize) % 8
            total = <double *>PyMem_Malloc(4 * total_size * sizeof(double))
            if total != NULL:
                memset(total, 0, 4 * total_size * sizeof(double))
        if (wide and plan.rows == NULL) or (dscale != NULL and (memory == NULL or total == NULL)):
            raise MemoryError("layer_norm_backward: no memory for the sums over observations")
        with nogil:
            if wide:
                count = groups * count if job.columns else observations
                for i in prange(count, num_threads=threads, schedule="static", use_threads_if=threads > 1):
                    backward_sums_task(&plan, i)
            task = 0
            while task < tasks:
                count = min(wave, tasks - task)
                if threads == 1:
                    for i in range(count):
                        sweep_task(&plan, task + i, NULL if partials == NULL else partials + i * 2 * plan.stride)
                else:
                    for i in prange(count, num_threads=threads, schedule="static"):
                        sweep_task(&plan, task + i, NULL if partials == NULL else partials + i * 2 * plan.stride)
                if partials != NULL:
                    for i in range(count):
                        collect(&plan, task + i, partials + i * 2 * plan.stride, total, total_size, dscale, doffset,
                                typenum)
                task = task + count
    finally:
        PyMem_Free(plan.rows)
        PyMem_Free(memory)
        PyMem_Free(total)
        lnorm_fp_leave(host)
    return 0


def backward(cnp.ndarray dy not None, cnp.ndarray x not None, scale, cnp.ndarray dx not None, mean, rstd, dscale, doffset,
             grad_strides, ptrdiff_t groups, ptrdiff_t grad_size, list order not None, int core, double epsilon):
    """Planned arrays as in `forward`. The leading axes of the order are those along which scale differs: `groups` of
    observations share their parameters. dscale and doffset, or None, are C-contiguous with grad_size elements for each
    group; grad_strides tells, in elements, which of these an element of x adds to."""
    cdef lnorm_job job
    fill_job(&job, [x, scale, dy, dx], order, core, grad_strides)
    job.epsilon = epsilon
    if mean is not None:
        set_statistics(&job, mean, rstd)
    choose_way(&job, 3, cnp.PyArray_ITEMSIZE(x), STREAM_ROW_BYTES if dscale is None else STREAM_SWEPT_BYTES)
    run_backward(&job, cnp.PyArray_TYPE(x), cnp.PyArray_SIZE(x) // job.n, groups, grad_size,
                 NULL if dscale is None else cnp.PyArray_DATA(dscale),
                 NULL if doffset is None else cnp.PyArray_DATA(doffset))


# --- the doors -----------------------------------------------------------------------------------------------------

cdef object plan_forward = None
cdef object plan_backward = None


def same_place(cnp.ndarray a not None, cnp.ndarray b not None):
    """Whether the first elements of two arrays are one."""
    return cnp.PyArray_DATA(a) == cnp.PyArray_DATA(b)


def set_planning(forward, backward):
    """functional.py hands in what prepares arrays that are not plain."""
    global plan_forward, plan_backward
    plan_forward, plan_backward = forward, backward


# From here to the end of the fast path, an object that is known to be an array is cast: asked whether it is one, as Cython
# does otherwise at each use, it costs a tenth of a small call.
cdef inline bint is_plain(object a, int typenum) noexcept:
    """An ndarray proper, C-contiguous, aligned, in native byte order."""
    return (cnp.PyArray_CheckExact(a) and cnp.PyArray_TYPE(<cnp.ndarray>a) == typenum and
            cnp.PyArray_ISCARRAY_RO(<cnp.ndarray>a))


cdef inline bint is_row(object a, int typenum, ptrdiff_t n) noexcept:
    return a is None or (is_plain(a, typenum) and cnp.PyArray_NDIM(<cnp.ndarray>a) == 1 and
                         cnp.PyArray_DIM(<cnp.ndarray>a, 0) == n)


cdef inline bint apart(cnp.ndarray a, cnp.ndarray b) noexcept:
    """No byte of a is one of b's; both plain, a may be None."""
    if a is None:
        return True
    cdef char *p = <char *>cnp.PyArray_DATA(a)
    cdef char *q = <char *>cnp.PyArray_DATA(b)
    return p + cnp.PyArray_NBYTES(a) <= q or q + cnp.PyArray_NBYTES(b) <= p


cdef inline bint same_shape(cnp.ndarray a, cnp.ndarray b) noexcept:
    cdef int d
    if cnp.PyArray_NDIM(a) != cnp.PyArray_NDIM(b):
        return False
    for d in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIM(a, d) != cnp.PyArray_DIM(b, d):
            return False
    return True


cdef inline bint is_last(object axis, int ndim) noexcept:
    """Whether an int is -1 or ndim - 1."""
    cdef int overflow = 0
    cdef long value = PyLong_AsLongAndOverflow(axis, &overflow)
    return not overflow and (value == -1 or value == ndim - 1)


cdef inline bint is_rows(cnp.ndarray x, object axis) noexcept:
    """float32 or float64, not empty, to be normalized over its last axis."""
    return (
        (cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT32 or cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT64)
        and cnp.PyArray_ISCARRAY_RO(x)
        and cnp.PyArray_NDIM(x) >= 1
        and cnp.PyArray_SIZE(x) > 0
        and is_last(axis, cnp.PyArray_NDIM(x))
    )


cdef inline bint is_plain_input(object x, object axis, object epsilon) noexcept:
    """The same of anything, with a good epsilon."""
    return (
        cnp.PyArray_CheckExact(x)
        and type(axis) is int
        and type(epsilon) is float
        and <double>epsilon >= 0
        and isfinite(<double>epsilon)
        and is_rows(<cnp.ndarray>x, axis)
    )


cdef inline bint is_plain_output(object out, cnp.ndarray x) noexcept:
    """None, or an array of x's kind that is x or has no byte of it."""
    return out is None or (
        is_plain(out, cnp.PyArray_TYPE(x))
        and cnp.PyArray_ISWRITEABLE(<cnp.ndarray>out)
        and same_shape(<cnp.ndarray>out, x)
        and (cnp.PyArray_DATA(<cnp.ndarray>out) == cnp.PyArray_DATA(x) or apart(x, <cnp.ndarray>out))
    )


cdef inline bint is_statistic(object a, cnp.ndarray x) noexcept:
    """A float64 for each row of x, with the last axis kept as 1."""
    cdef int d, last = cnp.PyArray_NDIM(x) - 1
    if not is_plain(a, cnp.NPY_FLOAT64) or cnp.PyArray_NDIM(<cnp.ndarray>a) != last + 1:
        return False
    for d in range(last):
        if cnp.PyArray_DIM(<cnp.ndarray>a, d) != cnp.PyArray_DIM(x, d):
            return False
    return cnp.PyArray_DIM(<cnp.ndarray>a, last) == 1


cdef inline cnp.ndarray empty_statistic(cnp.ndarray x):
    """The same, not filled."""
    cdef cnp.npy_intp shape[64]
    cdef int d, last = cnp.PyArray_NDIM(x) - 1
    for d in range(last):
        shape[d] = cnp.PyArray_DIM(x, d)
    shape[last] = 1
    return cnp.PyArray_EMPTY(last + 1, shape, cnp.NPY_FLOAT64, 0)


cdef inline cnp.ndarray empty_like(cnp.ndarray x):
    """A new result, not filled."""
    cdef cnp.ndarray out = cnp.PyArray_EMPTY(cnp.PyArray_NDIM(x), cnp.PyArray_DIMS(x), cnp.PyArray_TYPE(x), 0)
    map_pages(out)
    return out


cdef inline void set_statistics(lnorm_job *job, cnp.ndarray mean, cnp.ndarray rstd) noexcept:
    job.mean, job.rstd = <double *>cnp.PyArray_DATA(mean), <double *>cnp.PyArray_DATA(rstd)


cdef inline void set_plain(lnorm_job *job, cnp.ndarray x, double epsilon) noexcept:
    """A job over the rows of a plain x; the operands' rows are still to be set."""
    job.outer_ndim = job.inner_ndim = 1
    job.n = job.inner_shape[0] = cnp.PyArray_DIM(x, cnp.PyArray_NDIM(x) - 1)
    job.size = cnp.PyArray_NBYTES(x)
    job.outer_shape[0] = job.size // (job.n * cnp.PyArray_ITEMSIZE(x))
    job.epsilon = epsilon
    job.mean = job.rstd = NULL
    job.columns = False


cdef inline void set_operand(lnorm_job *job, int k, cnp.ndarray a, int typenum, bint shared) noexcept:
    """Operand k is a plain array: rows side by side or, shared, one row for all. None: ones or zeros."""
    cdef ptrdiff_t size = 4 if typenum == cnp.NPY_FLOAT32 else 8
    if a is None:
        set_absent(job, k, typenum)
    else:
        set_rows(job, k, <char *>cnp.PyArray_DATA(a), 0 if shared else job.n * size, size)


def layer_norm(x, scale=None, offset=None, *, axis=-1, epsilon=1e-5, out=None, return_stats=False):
    """Normalize x to mean 0 and variance 1 over some of its axes, then scale and shift it.

    For each *observation*, an index of the axes that are not normalized, with the mean and the variance taken over the
    n elements of its row [1]_::

        mean = Σ x / n    var = Σ (x - mean)² / n    rstd = 1 / √(var + epsilon)    y = scale·(x - mean)·rstd + offset

    Parameters
    ----------
    x : array_like
        float32 and float64 are computed in their own precision, integers and bool as float64. Any strides, alignment and
        byte order. It is not modified unless it is `out`.
    scale, offset : array_like, optional
        γ and β: anything that NumPy broadcasts against x without enlarging it: ``(C,)`` for a last channel axis,
        ``(C, 1, 1)`` for channels first, a full row, a scalar, or one that differs per observation, such as ``(B, 1, C)``.
        Cast to the precision of x. Without them 1 and 0.
    axis : int or tuple of int, default -1
        The normalized axes, in any order.
    epsilon : float, default 1e-5
        Added to the variance; finite and at least 0. Where var + epsilon = 0, rstd is defined as 0, so that y = offset.
    out : ndarray, optional
        Where the result goes, of the shape and dtype of the result. ``out=x`` works in place.
    return_stats : bool, default False
        Return mean and rstd too.

    Returns
    -------
    y : ndarray
        `out`, or a new array of x's shape, float32 or float64, in native byte order.
    mean, rstd : ndarray of float64
        With ``return_stats=True``: shaped like x with the normalized axes kept as 1.

    Raises
    ------
    TypeError
        A dtype that is not accepted, a masked array, an `epsilon` that is no number, an `axis` that is no int.
    ValueError
        Parameters that cannot be broadcast to x, an `epsilon` that is negative or not finite, repeated or no axes, an `out`
        of another shape or read-only.
    numpy.exceptions.AxisError
        An axis that x does not have.

    Notes
    -----
    With ε the machine epsilon of the dtype and x̂ = (x - mean)·rstd, ``|error of y| <= 4·ε·(|scale|·max|x̂| + |offset|)`` at
    every offset and scale of the data. The bits of a row's result depend on nothing but the row and the parameters: not on
    the batch, the layout, the threads, the instruction set or the compiler. A NaN or an infinity makes its own row NaN.

    An array type with its own ``__array_ufunc__``, such as dask's, is asked by NumPy's protocol to apply the generalized
    ufunc ``(n),(n),(n),()->(n)`` itself; the normalized axes then have to be in one chunk.

    References
    ----------
    .. [1] Ba, Kiros and Hinton, Layer Normalization, 2016, arXiv:1607.06450.

    Examples
    --------
    >>> import numpy as np
    >>> import lnorm
    >>> x = np.array([[1, 2, 3, 4], [10, 10, 10, 50]], dtype=np.float32)
    >>> lnorm.layer_norm(x).round(3)
    array([[-1.342, -0.447,  0.447,  1.342],
           [-0.577, -0.577, -0.577,  1.732]], dtype=float32)

    At an offset of a million, where the plain expression in float32 has no digit left:

    >>> bool(abs(lnorm.layer_norm(x + np.float32(1e6)) - lnorm.layer_norm(x)).max() < 1e-6)
    True

    Images with channels first: statistics over channels and space, one scale for each channel:

    >>> images = np.random.default_rng(0).standard_normal((8, 3, 32, 32))
    >>> y = lnorm.layer_norm(images, scale=np.ones((3, 1, 1)), axis=(1, 2, 3))
    >>> y.shape, bool(abs(y.mean(axis=(1, 2, 3))).max() < 1e-12)
    ((8, 3, 32, 32), True)
    """
    cdef int typenum
    cdef ptrdiff_t n
    cdef lnorm_job job
    cdef lnorm_fpenv host
    # No foreign code runs between a check and the kernel: not even return_stats.__bool__.
    if type(return_stats) is bool and is_plain_input(x, axis, epsilon):
        typenum = cnp.PyArray_TYPE(<cnp.ndarray>x)
        n = cnp.PyArray_DIM(<cnp.ndarray>x, cnp.PyArray_NDIM(<cnp.ndarray>x) - 1)
        if (
            is_row(scale, typenum, n)
            and is_row(offset, typenum, n)
            and is_plain_output(out, <cnp.ndarray>x)
            and (out is None or (apart(<cnp.ndarray>scale, <cnp.ndarray>out) and
                                 apart(<cnp.ndarray>offset, <cnp.ndarray>out)))
        ):
            if out is None:
                out = empty_like(<cnp.ndarray>x)
            set_plain(&job, <cnp.ndarray>x, epsilon)
            set_operand(&job, LNORM_X, <cnp.ndarray>x, typenum, False)
            set_operand(&job, LNORM_SCALE, <cnp.ndarray>scale, typenum, True)
            set_operand(&job, LNORM_OFFSET, <cnp.ndarray>offset, typenum, True)
            set_operand(&job, LNORM_Y, <cnp.ndarray>out, typenum, False)
            set_rows(&job, LNORM_GRAD, NULL, 0, 0)
            choose_way(&job, 2, job.op[<int>LNORM_X].inner[0], STREAM_LINES_BYTES)
            if return_stats:
                mean, rstd = empty_statistic(<cnp.ndarray>x), empty_statistic(<cnp.ndarray>x)
                set_statistics(&job, <cnp.ndarray>mean, <cnp.ndarray>rstd)
            run_forward(&job, kernels_of(typenum), job.outer_shape[0])
            return (out, mean, rstd) if return_stats else out
    host = lnorm_fp_enter()  # NumPy's casts, too, give the same bits
    try:
        return plan_forward(x, scale, offset, axis, epsilon, out, return_stats)
    finally:
        lnorm_fp_leave(host)


def layer_norm_backward(dy, x, scale=None, *, axis=-1, epsilon=1e-5, mean=None, rstd=None, param_grads=True,
                        out=None):
    """The gradient of a loss through `layer_norm`, from its gradient dy at the result.

    With x̂ = (x - mean)·rstd and g = scale·dy, means taken over a row and sums over whatever was broadcast [1]_ [2]_::

        dx = rstd·(g - mean(g) - x̂·mean(g·x̂))    dscale = Σ dy·x̂    doffset = Σ dy

    Parameters
    ----------
    dy : array_like
        The loss's gradient with respect to y; of the shape of x, cast to its precision.
    x, scale, axis, epsilon
        As they were given to `layer_norm`.
    mean, rstd : array_like, optional
        The statistics that ``layer_norm(..., return_stats=True)`` returned; both or neither. Without them they are computed
        again.
    param_grads : bool, default True
        Whether to compute dscale and doffset.
    out : ndarray, optional
        Where dx goes, of its shape and dtype; may be `dy` or `x` itself.

    Returns
    -------
    dx : ndarray
        `out`, or a new array of x's shape, float32 or float64.
    dscale, doffset : ndarray or None
        Of the shape of `scale`; without a scale, of the shape of the normalized axes. None with ``param_grads=False``.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `layer_norm`, and a ValueError for a `dy`, `mean` or `rstd` of another shape, or one of mean and rstd alone. A
        TypeError for lazy arrays such as dask's.

    Notes
    -----
    With ε the machine epsilon of the dtype, and at offsets of the data up to 10⁶: the error of dx is at most
    ``16·ε·rstd·max(|g| + mean|g| + |x̂|·mean|g·x̂|)`` in each row, and for random data at most ``16·ε·rstd·max|g|``, for rows of
    8 elements or more also ``16·ε·max|dx|``; where g is subnormal, ``rstd·(2 + 2·max|x̂|)`` of the smallest number more. That of
    dscale at most ``16·ε·Σ |dy|·max|x̂|``, that of doffset ``16·ε·Σ |dy|``; summed over four observations or more with random
    data, that of dscale is at most ``16·ε·Σ |dy·x̂|`` too. (In rows of 2 or 3 elements dx is almost nothing but a cancelled
    remainder, of the size of epsilon, and single x̂ may be near 0.) dscale and doffset are summed in blocks of observations that
    depend on the shape alone: the bits do not depend on the number of threads, the instruction set or the compiler.

    References
    ----------
    .. [1] Ba, Kiros and Hinton, Layer Normalization, 2016, arXiv:1607.06450.
    .. [2] Xu et al., Understanding and Improving Layer Normalization, 2019, arXiv:1911.07013.

    Examples
    --------
    >>> import numpy as np
    >>> import lnorm
    >>> rng = np.random.default_rng(0)
    >>> x, dy = rng.standard_normal((2, 64, 16))
    >>> scale = rng.standard_normal(16)
    >>> y, mean, rstd = lnorm.layer_norm(x, scale, return_stats=True)
    >>> dx, dscale, doffset = lnorm.layer_norm_backward(dy, x, scale, mean=mean, rstd=rstd)
    >>> dx.shape, dscale.shape, doffset.shape
    ((64, 16), (16,), (16,))
    >>> bool(abs(dx.sum(axis=-1)).max() < 1e-12)  # a shift of x changes nothing
    True
    """
    cdef int typenum
    cdef cnp.npy_intp n
    cdef lnorm_job job
    cdef lnorm_fpenv host
    if is_plain_input(x, axis, epsilon) and type(param_grads) is bool:
        typenum = cnp.PyArray_TYPE(<cnp.ndarray>x)
        n = cnp.PyArray_DIM(<cnp.ndarray>x, cnp.PyArray_NDIM(<cnp.ndarray>x) - 1)
        if (
            is_row(scale, typenum, n)
            and is_plain(dy, typenum)
            and same_shape(<cnp.ndarray>dy, <cnp.ndarray>x)
            and ((mean is None and rstd is None) or
                 (is_statistic(mean, <cnp.ndarray>x) and is_statistic(rstd, <cnp.ndarray>x)))
            and is_plain_output(out, <cnp.ndarray>x)
            and (out is None or (is_plain_output(out, <cnp.ndarray>dy) and
                                 apart(<cnp.ndarray>scale, <cnp.ndarray>out) and
                                 apart(<cnp.ndarray>mean, <cnp.ndarray>out) and
                                 apart(<cnp.ndarray>rstd, <cnp.ndarray>out)))
        ):
            if out is None:
                out = empty_like(<cnp.ndarray>x)
            set_plain(&job, <cnp.ndarray>x, epsilon)
            if mean is not None:
                set_statistics(&job, <cnp.ndarray>mean, <cnp.ndarray>rstd)
            set_operand(&job, LNORM_X, <cnp.ndarray>x, typenum, False)
            set_operand(&job, LNORM_SCALE, <cnp.ndarray>scale, typenum, True)
            set_operand(&job, LNORM_DY, <cnp.ndarray>dy, typenum, False)
            set_operand(&job, LNORM_DX, <cnp.ndarray>out, typenum, False)
            set_rows(&job, LNORM_GRAD, NULL, 0, 1)
            choose_way(&job, 3, job.op[<int>LNORM_X].inner[0],
                       STREAM_SWEPT_BYTES if param_grads else STREAM_ROW_BYTES)
            if not param_grads:
                run_backward(&job, typenum, job.outer_shape[0], 1, n, NULL, NULL)
                return out, None, None
            dscale = cnp.PyArray_EMPTY(1, &n, typenum, 0)
            doffset = cnp.PyArray_EMPTY(1, &n, typenum, 0)
            run_backward(&job, typenum, job.outer_shape[0], 1, n, cnp.PyArray_DATA(<cnp.ndarray>dscale),
                         cnp.PyArray_DATA(<cnp.ndarray>doffset))
            return out, dscale, doffset
    host = lnorm_fp_enter()
    try:
        return plan_backward(dy, x, scale, axis, epsilon, mean, rstd, param_grads, out)
    finally:
        lnorm_fp_leave(host)


# --- the generalized ufunc: how array types other than NumPy's take part --------------------------------------------

cdef void ufunc_loop(char **args, const cnp.npy_intp *dimensions, const cnp.npy_intp *steps, void *data) noexcept nogil:
    """(n),(n),(n),()->(n) or, with statistics, ->(n),(),(): x, scale, offset, epsilon -> y, mean, rstd."""
    cdef int typenum = (<int *>data)[0]
    cdef bint stats = (<int *>data)[1]
    cdef const cnp.npy_intp *core = steps + (7 if stats else 5)
    cdef const lnorm_kernels *kernels = kernels_of(typenum)
    cdef ptrdiff_t size = 4 if typenum == cnp.NPY_FLOAT32 else 8, i
    cdef lnorm_job job
    cdef double mean, rstd
    cdef int k
    job.outer_ndim = job.inner_ndim = 1
    job.outer_shape[0], job.inner_shape[0] = 1, dimensions[1]
    job.n = dimensions[1]
    job.size = job.n * size
    job.mean, job.rstd = &mean, &rstd
    job.columns = False
    job.stream = job.in_turn = False
    if job.n == 0:
        return
    for i in range(dimensions[0]):
        for k in range(3):
            set_rows(&job, k, args[k] + i * steps[k], 0, core[k])
        set_rows(&job, LNORM_Y, args[4] + i * steps[4], 0, core[3])
        set_rows(&job, LNORM_GRAD, NULL, 0, 0)
        for k in range(4):
            job.op[k].contiguous = job.op[k].inner[0] == size
        job.epsilon = (<double *>(args[3] + i * steps[3]))[0]
        kernels.forward(&job, 0, 1)
        if stats:
            (<double *>(args[5] + i * steps[5]))[0] = mean
            (<double *>(args[6] + i * steps[6]))[0] = rstd


cdef void quiet_ufunc_loop(char **args, const cnp.npy_intp *dimensions, const cnp.npy_intp *steps, void *data) noexcept nogil:
    """NumPy would warn of the floating-point flags that the loop leaves, so it leaves them as they were."""
    cdef lnorm_fpenv host = lnorm_fp_enter()
    ufunc_loop(args, dimensions, steps, data)
    lnorm_fp_leave(host)


cdef struct UfuncTables:  # NumPy keeps pointers to these
    cnp.PyUFuncGenericFunction loops[2]
    void *data[2]
    int loop_data[2][2]
    char types[14]

cdef UfuncTables tables_plain, tables_stats


cdef object make_ufunc(UfuncTables *tables, bint stats, const char *signature, const char *name, const char *doc):
    cdef int i, k, nargs = 7 if stats else 5
    for i in range(2):
        tables.loops[i] = <cnp.PyUFuncGenericFunction>quiet_ufunc_loop
        tables.loop_data[i][0] = cnp.NPY_FLOAT64 if i else cnp.NPY_FLOAT32
        tables.loop_data[i][1] = stats
        tables.data[i] = <void *>tables.loop_data[i]
        for k in range(nargs):
            tables.types[i * nargs + k] = cnp.NPY_FLOAT64 if i or k in (3, 5, 6) else cnp.NPY_FLOAT32
    return cnp.PyUFunc_FromFuncAndDataAndSignature(
        tables.loops, tables.data, tables.types, 2, 4, nargs - 4, cnp.PyUFunc_None, name, doc, 0, signature
    )


# Under the names that they have here, by which pickle finds them: dask sends them to other processes.
layer_norm_ufunc = make_ufunc(
    &tables_plain, False, "(n),(n),(n),()->(n)", "layer_norm_ufunc",
    "y of (x, scale, offset, epsilon), over the last axis",
)
layer_norm_stats = make_ufunc(
    &tables_stats, True, "(n),(n),(n),()->(n),(),()", "layer_norm_stats",
    "(y, mean, rstd) of (x, scale, offset, epsilon), over the last axis",
)
