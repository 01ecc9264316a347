/* Prints one hash for each instruction set that runs here, over what its kernels compute: to be built by any compiler for
   any processor and compared (same_bits_elsewhere.py). The numbers come from integers alone. */
#include "kernels.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t hash, state;

/* FNV-1a over values, not bytes, and one NaN: neither depends on the processor. */
#define EAT(T, U)                                                            \
    static void eat_##T(const T *p, size_t n)                                \
    {                                                                        \
        for (size_t i = 0; i < n; i++) {                                     \
            const T value = p[i] == p[i] ? p[i] : 0;                         \
            U word;                                                          \
            memcpy(&word, &value, sizeof word);                              \
            hash = (hash ^ (p[i] == p[i] ? word : 0x7ff8)) * 1099511628211u; \
        }                                                                    \
    }
EAT(float, uint32_t)
EAT(double, uint64_t)

/* SplitMix64 */
static uint64_t integer(void)
{
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static double number(void) { return (double)(int64_t)(integer() >> 11) / 4503599627370496.0 - 1; }

/* Kinds of rows: around zero, far from it, of many magnitudes, with a NaN. */
static double element(int kind, ptrdiff_t i)
{
    const double value = number();
    switch (kind) {
    case 1:
        return value + 1000;
    case 2:
        return ldexp(value, (int)(integer() % 200) - 120);
    case 3:
        return i == 5 ? NAN : value;
    default:
        return value;
    }
}

static void *room(size_t bytes) { return aligned_alloc(64, (bytes + 127) / 64 * 64); }

#define RUN(T)                                                                                                  \
    static void run_##T(const lnorm_kernels *k, ptrdiff_t rows, ptrdiff_t n, int columns, int stream, int kind) \
    {                                                                                                           \
        const ptrdiff_t size = sizeof(T), all = rows * n;                                                       \
        T *x = room(all * size), *dy = room(all * size), *y = room(all * size);                                 \
        T *scale = room(n * size), *offset = room(n * size);                                                    \
        double *mean = room(rows * 8), *rstd = room(rows * 8), *dscale = room(n * 8), *doffset = room(n * 8);   \
        lnorm_row *sums = room(rows * sizeof *sums);                                                            \
        lnorm_job *job = room(sizeof *job);                                                                     \
        for (ptrdiff_t i = 0; i < all; i++) {                                                                   \
            x[i] = (T)element(kind, i);                                                                         \
            dy[i] = (T)number();                                                                                \
            y[i] = 0;                                                                                           \
        }                                                                                                       \
        for (ptrdiff_t i = 0; i < n; i++) {                                                                     \
            scale[i] = (T)number();                                                                             \
            offset[i] = (T)number();                                                                            \
        }                                                                                                       \
        memset(job, 0, sizeof *job);                                                                            \
        job->outer_ndim = job->inner_ndim = 1;                                                                  \
        job->outer_shape[0] = rows;                                                                             \
        job->inner_shape[0] = job->n = n;                                                                       \
        job->size = stream ? 1 << 30 : all * size;                                                              \
        job->epsilon = 1e-5;                                                                                    \
        job->stream = stream;                                                                                   \
        void *data[LNORM_OPERANDS] = {x, scale, offset, y, NULL};                                               \
        for (int o = 0; o < LNORM_OPERANDS; o++) {                                                              \
            const int per_row = o == LNORM_X || o == LNORM_Y;                                                   \
            const ptrdiff_t step = o == LNORM_GRAD ? 1 : size;                                                  \
            job->op[o].data = data[o];                                                                          \
            job->op[o].outer[0] = !per_row ? 0 : columns ? step : n * step;                                     \
            job->op[o].inner[0] = per_row && columns ? rows * step : step;                                      \
            job->op[o].contiguous = !(per_row && columns);                                                      \
        }                                                                                                       \
        job->mean = mean;                                                                                       \
        job->rstd = rstd;                                                                                       \
        k->forward(job, 0, rows);                                                                               \
        eat_##T(y, all);                                                                                        \
        eat_double(mean, rows);                                                                                 \
        eat_double(rstd, rows);                                                                                 \
        const ptrdiff_t segments = (n + LNORM_SEGMENT - 1) / LNORM_SEGMENT;                                     \
        if (segments > 1) {                                                                                     \
            char *parts = room(segments * LNORM_SUMS_BYTES);                                                    \
            for (ptrdiff_t i = 0; i < rows; i++) {                                                              \
                for (ptrdiff_t s = segments - 1; s >= 0; s--)                                                   \
                    k->long_sums(job, i, s, s + 1, parts);                                                      \
                k->long_stats(job, i, segments, parts, sums);                                                   \
                k->long_write(job, i, LNORM_SEGMENT, n, sums);                                                  \
                k->long_write(job, i, 0, LNORM_SEGMENT, sums);                                                  \
            }                                                                                                   \
            eat_##T(y, all);                                                                                    \
            free(parts);                                                                                        \
        }                                                                                                       \
        job->op[LNORM_DY] = job->op[LNORM_X];                                                                   \
        job->op[LNORM_DY].data = (char *)dy;                                                                    \
        for (int given = 0; given < 2; given++) {                                                               \
            job->mean = given ? mean : NULL;                                                                    \
            job->rstd = given ? rstd : NULL;                                                                    \
            memset(dscale, 0, n * 8);                                                                           \
            memset(doffset, 0, n * 8);                                                                          \
            k->backward_sums(job, 0, rows, sums);                                                               \
            k->backward_sweep(job, 0, rows, sums, 0, n, dscale, doffset);                                       \
            eat_##T(y, all);                                                                                    \
            eat_double(dscale, n);                                                                              \
            eat_double(doffset, n);                                                                             \
        }                                                                                                       \
        void *rooms[] = {x, dy, y, scale, offset, mean, rstd, dscale, doffset, sums, job};                      \
        for (size_t i = 0; i < sizeof rooms / sizeof *rooms; i++)                                               \
            free(rooms[i]);                                                                                     \
    }
RUN(float)
RUN(double)

int main(void)
{
    static const ptrdiff_t widths[] = {1,   2,   3,   7,   15,  16,  17,  31,  32,  33,  63,  64,   65,   96,    97,
                                       127, 128, 129, 255, 256, 257, 511, 512, 513, 767, 768, 1025, 2049, 140001};
    for (int a = 0; a < lnorm_isa_count; a++) {
        const lnorm_isa *isa = &lnorm_isas[a];
        if (!isa->runnable())
            continue;
        hash = 14695981039346656037u;
        state = 0;
        for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
            for (int kind = 0; kind < 4; kind++)
                for (int way = 0; way < 3; way++) { /* rows, rows written around the caches, columns */
                    const ptrdiff_t n = widths[w], rows = n > 3000 ? 2 : way == 2 ? 70 : 19;
                    if ((way == 1 && n < 256) || (way == 2 && n > 800))
                        continue;
                    run_float(&isa->float32, rows, n, way == 2, way == 1, kind);
                    run_double(&isa->float64, rows, n, way == 2, way == 1, kind);
                }
        printf("%-10s %016llx\n", isa->name, (unsigned long long)hash);
    }
}
