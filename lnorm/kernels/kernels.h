/* The contract between the driver (_core.pyx) and the kernels: what a job is, and one table of functions for each
   instruction set. Nothing here knows about Python, threads or axes. */
#ifndef LNORM_KERNELS_H
#define LNORM_KERNELS_H

#include <stddef.h>

enum { LNORM_MAXDIMS = 64 }; /* NumPy's own limit */

/* A row is taken in blocks of so many elements: operands that do not stand side by side in memory are gathered block by
   block, so no call needs scratch of the row's length. */
enum { LNORM_BLOCK = 512 };

/* The sums of a long row are taken segment by segment, which threads can share; see stats.h. Room for those of one. */
enum { LNORM_SEGMENT = 128 * LNORM_BLOCK, LNORM_SUMS_BYTES = 1024 };

/* Observations that stand side by side (channels first) are taken a strip at a time, of so many bytes at most. */
enum { LNORM_STRIP_BYTES = 1 << 11, LNORM_STRIP = LNORM_STRIP_BYTES / 4 };

/* The operands of a job. The forward pass reads x, scale, offset and writes y; the backward pass reads x, scale, dy and
   writes dx, and its grad says which element of the parameters' gradient each element of a row adds to. */
enum {
    LNORM_X,
    LNORM_SCALE,
    LNORM_OFFSET,
    LNORM_Y,
    LNORM_GRAD,
    LNORM_OPERANDS,
    LNORM_DY = LNORM_OFFSET,
    LNORM_DX = LNORM_Y
};

typedef struct {
    char *data;                     /* first element of the first row */
    ptrdiff_t outer[LNORM_MAXDIMS]; /* bytes from one observation to the next, per outer dimension */
    ptrdiff_t inner[LNORM_MAXDIMS]; /* bytes from one element of a row to the next, per inner dimension */
    int contiguous;                 /* a row's elements stand side by side */
    int block;                      /* data is one block that serves for every block of every row */
} lnorm_operand;

typedef struct {
    int outer_ndim, inner_ndim;
    ptrdiff_t outer_shape[LNORM_MAXDIMS]; /* observations, in C order */
    ptrdiff_t inner_shape[LNORM_MAXDIMS]; /* the elements of a row, in C order */
    ptrdiff_t n;                          /* elements in a row */
    ptrdiff_t size;                       /* bytes of x, all of it */
    double epsilon;
    double *mean, *rstd; /* per observation: forward writes them, backward reads them; or NULL */
    int columns;         /* one inner dimension, and observations stand side by side; their parameters are the same */
    int stream;          /* the result does not fit the caches: write around them */
    int in_turn; /* nor do the operands, and this processor reads memory faster if it is asked long before, and a row around the
                    caches is written while the next one is summed: memory is read and written at once */
    lnorm_operand op[LNORM_OPERANDS];
} lnorm_job;

/* What is known of a row before its elements are taken a second time; see stats.h and backward.h. */
typedef struct {
    double center, rstd;    /* of the row times 2^exponent */
    int exponent;           /* 0 but for rows near the limits of their type */
    double mean_x;          /* of x̃ = (x - center)·rstd, which rounding the center has left */
    double mean_g, mean_gx; /* backward pass: of g = γ·dy, and of g·(x̃ - mean_x) */
} lnorm_row;

typedef struct {
    /* y (and mean, rstd) of the observations first <= i < last. */
    void (*forward)(const lnorm_job *job, ptrdiff_t first, ptrdiff_t last);
    /* The same for observation i alone, in three steps between which threads meet: the sums of segments first <= s < last
       to sums + s·LNORM_SUMS_BYTES; from those of all segments what is to be known of the row; elements begin <= j < end,
       each but n a multiple of LNORM_BLOCK. */
    void (*long_sums)(const lnorm_job *job, ptrdiff_t i, ptrdiff_t first, ptrdiff_t last, void *sums);
    void (*long_stats)(const lnorm_job *job, ptrdiff_t i, ptrdiff_t segments, const void *sums, lnorm_row *row);
    void (*long_write)(const lnorm_job *job, ptrdiff_t i, ptrdiff_t begin, ptrdiff_t end, const lnorm_row *row);
    /* The sums over each of the rows first <= i < last; where they are columns, of one strip, here and below. */
    void (*backward_sums)(const lnorm_job *job, ptrdiff_t first, ptrdiff_t last, lnorm_row *rows);
    /* dx in the columns begin <= j < end of those rows; adds their Σ dy·x̂ and Σ dy to dscale[j - begin] and
       doffset[j - begin], unless these are NULL. */
    void (*backward_sweep)(const lnorm_job *job, ptrdiff_t first, ptrdiff_t last, const lnorm_row *rows,
                           ptrdiff_t begin, ptrdiff_t end, double *dscale, double *doffset);
    /* Both, with gradients, of plain rows of at least a line: dx goes around the caches while the next rows are summed. NULL
       where registers are narrow: their arithmetic takes longer than memory. */
    void (*backward_in_turn)(const lnorm_job *job, ptrdiff_t first, ptrdiff_t last, double *dscale, double *doffset);
} lnorm_kernels;

typedef struct {
    const char *name;
    int (*runnable)(void);
    lnorm_kernels float32, float64;
} lnorm_isa;

/* The width of the next strip, where so many observations are left: all strips of a plane are about as wide. */
static inline int lnorm_strip(ptrdiff_t left, ptrdiff_t itemsize)
{
    const ptrdiff_t most = LNORM_STRIP_BYTES / itemsize, strips = (left + most - 1) / most;
    const ptrdiff_t width = ((left + strips - 1) / strips + 15) / 16 * 16;
    return (int)(width < left ? width : left);
}

extern const lnorm_isa lnorm_isas[]; /* compiled in, best first; the last one runs everywhere */
extern const int lnorm_isa_count;

/* Whether this processor reads and writes rows from memory faster in turn. */
int lnorm_takes_turns(void);

/* total[k] += partial[j] for the columns begin <= j < end of a row, k the element of the gradient that column j adds to,
   less base. Compensated: total is a pair of arrays, the sums and, `size` further on, what their roundings left. */
void lnorm_add_partial(const lnorm_job *job, ptrdiff_t begin, ptrdiff_t end, const double *partial, double *total,
                       ptrdiff_t size, ptrdiff_t base);

const char *lnorm_compiler(void);

#endif
