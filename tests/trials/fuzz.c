/* libFuzzer on the table of kernels: any job that the driver may give, against the formulas in long double, with operands
   in memory of exactly their size. Run by fuzz.py.

   The first bytes of the input choose the element type, the layout and the sizes; the rest are the numbers: their raw bits, and
   where these end, small multiples of what came before. What is promised of a row's values is tests/oracle.py's table of
   bounds, plus what no result in T can avoid: the underflow of x̂, γ·x̂ and y. */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../lnorm/kernels/kernels.h"

enum { BOUND_Y = 4, BOUND_DX = 16, BOUND_GRAD = 16 };

typedef struct {
    const uint8_t *at, *end;
    uint64_t state;
} Bytes;

static unsigned byte(Bytes *b) { return b->at < b->end ? *b->at++ : 0; }

/* The next number: raw bits while there are any, then a repetition of the row so far with small changes. */
static double number(Bytes *b, int wide, int tame)
{
    double value;
    const size_t size = wide ? 8 : 4;
    if ((size_t)(b->end - b->at) >= size) {
        float narrow;
        memcpy(wide ? (void *)&value : (void *)&narrow, b->at, size);
        b->at += size;
        value = wide ? value : narrow;
    } else {
        b->state = b->state * 6364136223846793005u + 1442695040888963407u;
        value = (double)(int64_t)b->state * 0x1p-62;
    }
    if (tame && !(fabs(value) > 1e-6 && fabs(value) < 1e6)) /* parameters and dy: no overflow of products */
        value = isfinite(value) ? remainder(value, 8) : 1;
    return value;
}

static double element(const void *p, int wide, size_t i)
{
    return wide ? ((const double *)p)[i] : ((const float *)p)[i];
}

static void set_element(void *p, int wide, size_t i, double value)
{
    if (wide)
        ((double *)p)[i] = value;
    else
        ((float *)p)[i] = (float)value;
}

static void broken(const char *isa, const char *what, size_t row, size_t j, long double error, long double unit)
{
    fprintf(stderr, "%s: %s breaks its bound in row %zu, element %zu: error %Lg of unit %Lg\n", isa, what, row, j,
            error, unit);
    abort();
}

typedef struct {
    int wide, columns, inplace, given;
    size_t m, n;
    double epsilon;
    void *x, *dy, *scale, *offset;
} Case;

/* Element j of row i, in rows or in columns. */
static size_t at(const Case *c, size_t i, size_t j) { return c->columns ? j * c->m + i : i * c->n + j; }

static void operand(lnorm_job *job, int k, const Case *c, void *data, int shared)
{
    const ptrdiff_t size = c->wide ? 8 : 4;
    job->op[k] = (lnorm_operand){.data = data, .contiguous = shared || !c->columns || c->n == 1 || c->m == 1};
    job->op[k].outer[0] = shared ? 0 : c->columns ? size : size * (ptrdiff_t)c->n;
    job->op[k].inner[0] = shared || !c->columns ? size : size * (ptrdiff_t)c->m;
}

static lnorm_job job_of(const Case *c, double *mean, double *rstd)
{
    lnorm_job job = {
        .outer_ndim = 1, .inner_ndim = 1, .n = (ptrdiff_t)c->n, .epsilon = c->epsilon, .mean = mean, .rstd = rstd};
    job.size = c->m % 2 ? 1 << 30 : (ptrdiff_t)(c->m * c->n * (c->wide ? 8 : 4)); /* also as if no cache held them */
    job.outer_shape[0] = (ptrdiff_t)c->m;
    job.inner_shape[0] = (ptrdiff_t)c->n;
    operand(&job, LNORM_X, c, c->x, 0);
    operand(&job, LNORM_SCALE, c, c->scale, 1);
    job.op[LNORM_GRAD] = (lnorm_operand){.contiguous = 1};
    job.op[LNORM_GRAD].inner[0] = 1;
    return job;
}

/* A row in long double, scaled so that no square leaves its range. */
typedef struct {
    long double *xhat, *g, *dx, rstd, largest, largest_g, largest_dx;
    int finite;
} Row;

static void exact(Row *r, const Case *c, size_t i)
{
    const size_t n = c->n;
    long double sum = 0, var = 0, shift = element(c->x, c->wide, at(c, i, 0)), mean_g = 0, mean_gx = 0;
    r->finite = 1;
    for (size_t j = 0; j < n; j++) {
        r->xhat[j] = element(c->x, c->wide, at(c, i, j)) - shift;
        r->finite &= isfinite(element(c->x, c->wide, at(c, i, j)));
        sum += r->xhat[j];
    }
    for (size_t j = 0; j < n; j++) {
        r->xhat[j] -= sum / n;
        var += r->xhat[j] * r->xhat[j];
    }
    const long double spread = var / n + c->epsilon;
    r->rstd = spread > 0 ? 1 / sqrtl(spread) : 0;
    r->largest = r->largest_g = r->largest_dx = 0;
    for (size_t j = 0; j < n; j++) {
        r->xhat[j] *= r->rstd;
        r->g[j] = (long double)element(c->scale, c->wide, j) * element(c->dy, c->wide, at(c, i, j));
        mean_g += r->g[j] / n;
        mean_gx += r->g[j] * r->xhat[j] / n;
        r->largest = fmaxl(r->largest, fabsl(r->xhat[j]));
        r->largest_g = fmaxl(r->largest_g, fabsl(r->g[j]));
    }
    for (size_t j = 0; j < n; j++) {
        r->dx[j] = r->rstd * (r->g[j] - mean_g - r->xhat[j] * mean_gx);
        r->largest_dx = fmaxl(r->largest_dx, fabsl(r->dx[j]));
    }
}

static void check(const char *isa, const lnorm_kernels *kernels, const Case *c, const Row *rows)
{
    const size_t size = c->wide ? 8 : 4, m = c->m, n = c->n;
    const long double eps = c->wide ? DBL_EPSILON : FLT_EPSILON, tiny = c->wide ? 0x1p-1074L : 0x1p-149L;
    const long double most = c->wide ? DBL_MAX : FLT_MAX;
    double *mean = malloc(m * 8), *rstd = malloc(m * 8), *dscale = calloc(n, 8), *doffset = calloc(n, 8);
    lnorm_row *sums = malloc(m * sizeof *sums);
    void *y = malloc(m * n * size), *dx = malloc(m * n * size);
    Case in = *c;
    if (c->inplace) {
        memcpy(y, c->x, m * n * size);
        in.x = y;
    }
    lnorm_job job = job_of(&in, mean, rstd);
    operand(&job, LNORM_OFFSET, c, c->offset, 1);
    operand(&job, LNORM_Y, c, y, 0);
    kernels->forward(&job, 0, (ptrdiff_t)m);
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            const Row *r = &rows[i];
            const long double g = element(c->scale, c->wide, j), b = element(c->offset, c->wide, j);
            const double got = element(y, c->wide, at(c, i, j));
            if (!r->finite) {
                if (!isnan(got))
                    broken(isa, "NaN", i, j, got, 0);
                continue;
            }
            const long double unit = eps * (fabsl(g) * r->largest + fabsl(b)),
                              error = fabsl(got - (g * r->xhat[j] + b));
            if (!(error <= BOUND_Y * unit + (2 + 2 * fabsl(g) * (1 + r->rstd)) * tiny))
                broken(isa, "y", i, j, error, unit);
        }
    job = job_of(c, c->given ? mean : NULL, c->given ? rstd : NULL);
    operand(&job, LNORM_DY, c, c->dy, 0);
    operand(&job, LNORM_DX, c, dx, 0);
    kernels->backward_sums(&job, 0, (ptrdiff_t)m, sums);
    kernels->backward_sweep(&job, 0, (ptrdiff_t)m, sums, 0, (ptrdiff_t)n, dscale, doffset);
    for (size_t j = 0; j < n; j++) {
        long double ds = 0, db = 0, ds_unit = 0, db_unit = 0, ds_least = 0, fits = 1;
        for (size_t i = 0; i < m; i++) {
            const Row *r = &rows[i];
            const long double dy = element(c->dy, c->wide, at(c, i, j));
            ds += dy * r->xhat[j];
            db += dy;
            ds_unit += fabsl(dy) * r->largest;
            db_unit += fabsl(dy);
            ds_least += (2 + 2 * fabsl(dy) * (1 + r->rstd)) * tiny;
            fits = fits && r->finite;
            if (!r->finite || !(r->rstd * r->largest_g * n < most / 4))
                continue;
            const double got = element(dx, c->wide, at(c, i, j));
            const long double unit = eps * fmaxl(r->largest_dx, r->rstd * r->largest_g), error = fabsl(got - r->dx[j]);
            /* Where g is subnormal, its rounding counts once in g and once in mean(g), and times |x̂| in x̂·mean(g·x̂), with
               those of the means and of the products: (2 + 2·|x̂|)·rstd of the smallest number. */
            const long double least = 2 + 2 * r->rstd * (1 + r->largest + r->largest_g * (1 + r->rstd));
            if (!(error <= BOUND_DX * unit + least * tiny))
                broken(isa, "dx", i, j, error, unit);
        }
        if (fits && !(fabsl(dscale[j] - ds) <= BOUND_GRAD * eps * ds_unit + ds_least))
            broken(isa, "dscale", 0, j, fabsl(dscale[j] - ds), eps * ds_unit);
        if (!(fabsl(doffset[j] - db) <= BOUND_GRAD * eps * db_unit))
            broken(isa, "doffset", 0, j, fabsl(doffset[j] - db), eps * db_unit);
    }
    free(mean), free(rstd), free(dscale), free(doffset), free(sums), free(y), free(dx);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length)
{
    static const double epsilons[] = {1e-5, 0, 1e-12, 1};
    if (length < 8)
        return 0;
    Bytes b = {data, data + length, length};
    Case c;
    const unsigned flags = byte(&b), magnitude = byte(&b);
    c.wide = flags & 1;
    c.columns = flags >> 1 & 1;
    c.inplace = flags >> 2 & 1;
    c.given = flags >> 3 & 1;
    c.epsilon = epsilons[flags >> 4 & 3];
    c.n = 1 + (byte(&b) | byte(&b) << 8) % (flags >> 6 == 3 ? 1400 : flags >> 6 == 2 ? 300 : 70);
    c.m = 1 + byte(&b) % (c.n > 300 ? 9 : 40);
    const size_t size = c.wide ? 8 : 4, pattern = 1 + byte(&b) % 40;
    c.x = malloc(c.m * c.n * size);
    c.dy = malloc(c.m * c.n * size);
    c.scale = malloc(c.n * size);
    c.offset = malloc(c.n * size);
    const double offset = magnitude % 4 == 1 ? 1e6 : magnitude % 4 == 2 ? -3e3 : 0;
    const int exponent = magnitude >> 4 ? ((int)(magnitude >> 4) - 8) * (c.wide ? 120 : 15) : 0;
    double values[40];
    for (size_t j = 0; j < pattern; j++)
        values[j] = number(&b, c.wide, magnitude >> 2 & 1);
    for (size_t k = 0; k < c.m * c.n; k++) {
        /* What the input holds comes again and again, in runs of one lane each: roundings that add up. */
        const double again = values[magnitude >> 3 & 1 ? k / 32 % pattern : k % pattern];
        set_element(c.x, c.wide, k, k < 32 && b.at < b.end ? number(&b, c.wide, 0) : ldexp(again, exponent) + offset);
        set_element(c.dy, c.wide, k, number(&b, c.wide, 1));
    }
    for (size_t j = 0; j < c.n; j++) {
        set_element(c.scale, c.wide, j, number(&b, c.wide, 1));
        set_element(c.offset, c.wide, j, number(&b, c.wide, 1));
    }
    Row *rows = malloc(c.m * sizeof *rows);
    long double *memory = malloc(3 * c.m * c.n * sizeof *memory);
    for (size_t i = 0; i < c.m; i++) {
        rows[i].xhat = memory + 3 * i * c.n;
        rows[i].g = rows[i].xhat + c.n;
        rows[i].dx = rows[i].g + c.n;
        exact(&rows[i], &c, i);
    }
    for (int k = 0; k < lnorm_isa_count; k++)
        if (lnorm_isas[k].runnable())
            check(lnorm_isas[k].name, c.wide ? &lnorm_isas[k].float64 : &lnorm_isas[k].float32, &c, rows);
    free(rows), free(memory), free(c.x), free(c.dy), free(c.scale), free(c.offset);
    return 0;
}
