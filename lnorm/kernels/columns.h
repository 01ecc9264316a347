/* Rows across memory: their elements are far apart, while observations stand side by side (channels first). A register
   holds the same element of W observations, and each lane of a sum is a register: the additions of stats.h and the
   formula of forward.h, in the same order, for W rows at once. A tile of observations, one cache line or
   four, is taken at a time. Planes that lie a power of two apart push each other out of the caches: those are first brought
   together. */

#define NARROW (LINE / T_SIZE) /* observations in a tile */
#define TILE (4 * NARROW)
#define TILE_BYTES (1 << 16)
#define SPAN 4 /* registers whose sums are taken together */

/* Some registers of observations: where the elements are that a sum takes, and what it needs to know. */
typedef struct {
    const T *x, *dy, *scale;
    ptrdiff_t x_step, dy_step, n; /* in elements */
    int same_scale;               /* in every block */
    V center[SPAN], rstd[SPAN];
} Columns;

/* One lane of up to three sums, or the sum of several lanes. */
typedef struct {
    Total of[3][SPAN * PARTS];
} Lane;

INLINE void add_lane(Lane *sum, const Lane *lane, int sums, int registers)
{
    for (int k = 0; k < sums; k++)
        for (int i = 0; i < registers * PARTS; i++) {
            sum->of[k][i].sum += lane->of[k][i].sum;
#if T_SIZE == 8
            sum->of[k][i].rest += lane->of[k][i].rest;
#endif
        }
}

/* The terms of add_squares in stats.h, or those of add_terms in backward.h, for element j of register i. */
INLINE void terms_of(V *d, V *d2, V *d3, const Columns *at, const T *scale, ptrdiff_t j, int i, int what)
{
    const V x = load(at->x + j * at->x_step + i * W) - at->center[i];
    if (what == ALL) {
        *d = x;
        *d2 = x * x;
    } else {
        *d = x * at->rstd[i];
        *d2 = SPLAT(scale[j]) * load(at->dy + j * at->dy_step + i * W);
        *d3 = *d2 * *d;
    }
}

/* Lane l: elements l, l + LANES, ... of means_of_first, add_up_short, add_up, or backward.h's sums. */
INLINE void sum_lane(Lane *lane, const Columns *at, ptrdiff_t l, int what, int registers)
{
    const ptrdiff_t n = at->n;
    const int sums = what == BACKWARD ? 3 : 2;
    if (what == FIRST || what == ALL_SHORT) {
        D sum[2][SPAN * PARTS];
        for (int i = 0; i < registers * PARTS; i++)
            sum[0][i] = sum[1][i] = (D){0};
        for (ptrdiff_t j = l; j < n && (what == ALL_SHORT || j < CENTER); j += LANES)
            for (int i = 0; i < registers; i++) {
                D wide[PARTS];
                widen(wide, load(at->x + j * at->x_step + i * W));
                for (int p = 0; p < PARTS; p++) {
                    sum[0][i * PARTS + p] += wide[p];
                    if (what == ALL_SHORT)
                        sum[1][i * PARTS + p] += wide[p] * wide[p];
                }
            }
        for (int k = 0; k < (what == FIRST ? 1 : 2); k++)
            for (int i = 0; i < registers * PARTS; i++)
                add_to(&lane->of[k][i], sum[k][i], 1);
        return;
    }
    ptrdiff_t b = 0;
    do {
        const ptrdiff_t end = n - b < LNORM_BLOCK ? n : b + LNORM_BLOCK;
        const ptrdiff_t fours = b + (end - b) / (4 * LANES) * (4 * LANES);
        const T *scale = at->scale - (at->same_scale ? b : 0);
        V sum[3][SPAN];
        for (int k = 0; k < sums; k++)
            for (int i = 0; i < registers; i++)
                sum[k][i] = SPLAT((T)0);
        ptrdiff_t j = b + l;
        for (; j < fours; j += 4 * LANES)
            for (int i = 0; i < registers; i++) {
                V d[4], d2[4], d3[4];
                for (int q = 0; q < 4; q++)
                    terms_of(&d[q], &d2[q], &d3[q], at, scale, j + q * LANES, i, what);
                sum[0][i] += SUM_OF(V, d, 4);
                sum[1][i] += SUM_OF(V, d2, 4);
                if (what == BACKWARD)
                    sum[2][i] += SUM_OF(V, d3, 4);
            }
        for (; j < end; j += LANES)
            for (int i = 0; i < registers; i++) {
                V d, d2, d3;
                terms_of(&d, &d2, &d3, at, scale, j, i, what);
                sum[0][i] += d;
                sum[1][i] += d2;
                if (what == BACKWARD)
                    sum[2][i] += d3;
            }
        for (int k = 0; k < sums; k++)
            for (int i = 0; i < registers; i++) {
                D wide[PARTS];
                widen(wide, sum[k][i]);
                for (int p = 0; p < PARTS; p++)
                    add_to(&lane->of[k][i * PARTS + p], wide[p], b == 0);
            }
        b += LNORM_BLOCK;
    } while (b < n);
}

/* The lane tree with lanes in bit-reversed order, so that a sum waits for its other half as short as can be. */
INLINE void sum_columns(double (*sums)[SPAN * W], const Columns *at, int what, int registers)
{
    static const unsigned char reversed[LANES] = {0, 16, 8, 24, 4, 20, 12, 28, 2, 18, 10, 26, 6, 22, 14, 30,
                                                  1, 17, 9, 25, 5, 21, 13, 29, 3, 19, 11, 27, 7, 23, 15, 31};
    const int count = what == FIRST ? 1 : what == BACKWARD ? 3 : 2;
    Lane waiting[6], *sum = waiting;
    for (int i = 0; i < LANES; i++, sum++) {
        sum_lane(sum, at, reversed[i], what, registers);
        for (int k = i; k & 1; k >>= 1, sum--)
            add_lane(sum - 1, sum, count, registers);
    }
    for (int k = 0; k < count; k++)
        for (int i = 0; i < registers * PARTS; i++)
#if T_SIZE == 8
            *(D *)(sums[k] + i * DW) = waiting->of[k][i].sum + waiting->of[k][i].rest;
#else
            *(D *)(sums[k] + i * DW) = waiting->of[k][i].sum;
#endif
}

/* How many lanes of a register that begins at the at-th of some observations come before the i-th. */
INLINE int lanes_before(int i, int at) { return i < at ? 0 : i - at < W ? i - at : W; }

/* The statistics of some registers of observations, of which those from begin to end - 1 matter. */
INLINE void stats_of_columns(Stats *s, const T *x, ptrdiff_t step, View *vx, const char *row, int begin, int end,
                             int registers)
{
    Columns at = {.x = x, .x_step = step, .n = vx->job->n};
    const int is_all_short = is_short(at.n);
    double sums[2][SPAN * W];
    T center[SPAN * W];
    if (is_all_short) {
        fill(center, SPAN * W, 0);
        sum_columns(sums, &at, ALL_SHORT, registers);
    } else {
        sum_columns(sums, &at, FIRST, registers);
        for (int i = 0; i < registers * W; i++)
            center[i] = (T)(sums[0][i] / (double)(at.n < CENTER ? at.n : CENTER));
        for (int i = 0; i < registers; i++)
            at.center[i] = load(center + i * W);
        sum_columns(sums, &at, ALL, registers);
    }
    for (int i = 0; i < registers; i++)
        settle_all(&s[i], sums[0] + i * W, sums[1] + i * W, center + i * W, W, lanes_before(begin, i * W),
                   lanes_before(end, i * W), is_all_short ? FAR_SHORT : FAR, vx, row + i * W * T_SIZE, T_SIZE);
}

/* Whether the elements of an observation find room in the caches where they are, beside those of the next tile. */
INLINE int is_roomy(const lnorm_job *job) { return job->op[LNORM_X].inner[0] % 4096 != 0; }

/* y of m observations, those from the skip-th on of so many registers full of them; the others are there to be read. False,
   and nothing is written, if one of the m is not finite or near the limits of its type. */
INLINE int forward_tile(const lnorm_walk *walk, View *vx, View *vscale, View *voffset, double *mean, double *rstd,
                        int skip, int m, int registers)
{
    const lnorm_job *job = walk->job;
    const ptrdiff_t n = job->n, x_stride = job->op[LNORM_X].inner[0], y_stride = job->op[LNORM_Y].inner[0];
    const int width = registers * W, streamed = job->stream && m == width && y_stride % LINE == 0;
    const int roomy = is_roomy(job), span = registers < SPAN ? registers : SPAN;
    const char *x = walk->at[LNORM_X] - skip * T_SIZE;
    char *y = walk->at[LNORM_Y] - skip * T_SIZE;
    T tile[TILE_BYTES / T_SIZE] __attribute__((aligned(LINE)));
    V k[TILE / W], r[TILE / W], c[TILE / W];
    const T *from = (const T *)x;
    ptrdiff_t stride = x_stride / T_SIZE;
    if (!roomy && n * width * T_SIZE <= TILE_BYTES) {
        from = tile;
        stride = width;
        for (ptrdiff_t j = 0; j < n; j++)
            for (int i = 0; i < width; i += NARROW) {
                PREFETCH((const T *)(x + j * x_stride) + width + i);
                for (int w = i; w < i + NARROW; w += W)
                    store(tile + j * width + w, load((const T *)(x + j * x_stride) + w));
            }
    }
    for (int i = 0; i < registers; i += span) {
        Stats s[SPAN];
        stats_of_columns(s, from + i * W, stride, vx, x + i * W * T_SIZE, skip - i * W, skip + m - i * W, span);
        for (int h = i; h < i + span; h++) {
            const int begin = lanes_before(skip, h * W), end = lanes_before(skip + m, h * W);
            for (int l = begin; l < end; l++) {
                if (s[h - i].exponent[l] || isnan(s[h - i].rstd[l]))
                    return 0;
                if (mean) {
                    mean[h * W + l - skip] = s[h - i].mean[l];
                    rstd[h * W + l - skip] = s[h - i].rstd[l];
                }
            }
            k[h] = load(s[h - i].k);
            r[h] = load(s[h - i].r);
            c[h] = load(s[h - i].c);
        }
    }
    const int aligned = streamed && until_aligned((const T *)y, LINE) == 0;
    for (ptrdiff_t b = 0; b < n; b += LNORM_BLOCK) {
        const ptrdiff_t end = n - b < LNORM_BLOCK ? n : b + LNORM_BLOCK;
        const T *scale = get(vscale, walk->at[LNORM_SCALE], b, end - b, 0);
        const T *offset = get(voffset, walk->at[LNORM_OFFSET], b, end - b, 0);
        for (ptrdiff_t j = b; j < end; j++) {
            const V g = SPLAT(scale[j - b]), o = SPLAT(offset[j - b]);
            T *to = (T *)(y + j * y_stride);
            if (roomy)
                for (int i = 0; i < width * T_SIZE; i += LINE) {
                    PREFETCH(x + j * x_stride + width * T_SIZE + i);
                    if (!aligned)
                        PREFETCH_TO_WRITE((char *)to + width * T_SIZE + i);
                }
            for (int i = 0; i < registers; i++) {
                const V v = XHAT(load(from + j * stride + i * W), k[i], r[i], c[i]) * g + o;
                if (aligned)
                    stream_to(to + i * W, v);
                else if (m == width)
                    store(to + i * W, v);
                else
                    store_part(to + i * W, v, lanes_before(skip, i * W), lanes_before(skip + m, i * W));
            }
        }
    }
    return 1;
}

static NOINLINE int forward_wide_tile(const lnorm_walk *walk, View *vx, View *vscale, View *voffset, double *mean,
                                      double *rstd)
{
    return forward_tile(walk, vx, vscale, voffset, mean, rstd, 0, TILE, TILE / W);
}

static NOINLINE int forward_narrow_tile(const lnorm_walk *walk, View *vx, View *vscale, View *voffset, double *mean,
                                        double *rstd, int skip, int m)
{
    return forward_tile(walk, vx, vscale, voffset, mean, rstd, skip, m, NARROW / W);
}

/* Whether the observations of a job can be taken as columns, wherever they begin. */
INLINE int lies_in_columns(const lnorm_job *job)
{
    const int last = job->outer_ndim - 1;
    return last >= 0 && job->inner_ndim == 1 && job->outer_shape[last] >= NARROW &&
           job->op[LNORM_X].outer[last] == T_SIZE && job->op[LNORM_Y].outer[last] == T_SIZE &&
           job->op[LNORM_SCALE].outer[last] == 0 && job->op[LNORM_OFFSET].outer[last] == 0;
}

/* The next tile of at most m observations: how many were written, or the negative of how many have to be taken one by one. */
INLINE int forward_columns(const lnorm_walk *walk, View *vx, View *vscale, View *voffset, double *mean, double *rstd,
                           ptrdiff_t most)
{
    const lnorm_job *job = walk->job;
    const ptrdiff_t head = job->op[LNORM_Y].inner[0] % LINE ? 0 : until_aligned((const T *)walk->at[LNORM_Y], LINE);
    int m = (int)(most < NARROW ? most : NARROW), done;
    if (head)
        m = head < most ? (int)head : m;
    if (m == NARROW && most >= TILE && job->n * TILE * T_SIZE <= (is_roomy(job) ? ROOM : TILE_BYTES)) {
        m = TILE;
        done = forward_wide_tile(walk, vx, vscale, voffset, mean, rstd);
    } else {
        const ptrdiff_t left = lnorm_walk_left(walk);
        done = forward_narrow_tile(walk, vx, vscale, voffset, mean, rstd, left < NARROW ? (int)(NARROW - left) : 0, m);
    }
    return done ? m : -m;
}
