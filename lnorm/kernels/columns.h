/* Rows across memory: their elements are far apart, while observations stand side by side (channels first). A register
   holds the same element of W observations, and each lane of a sum is a register: the additions of stats.h and the
   formula of forward.h, in the same order, for W rows at once. A tile of observations, one cache line or
   four, is taken at a time. Planes that lie a power of two apart push each other out of the caches: those are first brought
   together. */

#define NARROW (LINE / T_SIZE) /* observations in a tile */
#define TILE (4 * NARROW)
#define TILE_BYTES (1 << 16)

/* W observations: where the elements are that a sum takes, and what it needs to know. */
typedef struct {
    const T *x, *dy, *scale;
    ptrdiff_t x_step, dy_step, n; /* in elements */
    V center, rstd;
} Columns;

/* One lane of up to three sums, or the sum of several lanes. */
typedef struct {
    Total of[3][PARTS];
} Lane;

INLINE void add_lane(Lane *sum, const Lane *lane, int sums)
{
    for (int k = 0; k < sums; k++)
        for (int i = 0; i < PARTS; i++) {
            sum->of[k][i].sum += lane->of[k][i].sum;
#if T_SIZE == 8
            sum->of[k][i].rest += lane->of[k][i].rest;
#endif
        }
}

/* The terms of add_squares in stats.h, or those of add_terms in backward.h, for element j. */
INLINE void terms_of(V *d, V *d2, V *d3, const Columns *at, ptrdiff_t j, int what)
{
    const V x = load(at->x + j * at->x_step) - at->center;
    if (what == ALL) {
        *d = x;
        *d2 = x * x;
    } else {
        *d = x * at->rstd;
        *d2 = SPLAT(at->scale[j]) * load(at->dy + j * at->dy_step);
        *d3 = *d2 * *d;
    }
}

/* Lane l: elements l, l + LANES, ... of means_of_first, add_up_short, add_up, or backward.h's sums. */
INLINE void sum_lane(Lane *lane, const Columns *at, ptrdiff_t l, int what)
{
    const ptrdiff_t n = at->n;
    *lane = (Lane){0};
    if (what == FIRST || what == ALL_SHORT) {
        for (ptrdiff_t j = l; j < n && (what == ALL_SHORT || j < CENTER); j += LANES) {
            D wide[PARTS];
            widen(wide, load(at->x + j * at->x_step));
            for (int i = 0; i < PARTS; i++) {
                lane->of[0][i].sum += wide[i];
                if (what == ALL_SHORT)
                    lane->of[1][i].sum += wide[i] * wide[i];
            }
        }
        return;
    }
    for (ptrdiff_t b = 0; b < n; b += LNORM_BLOCK) {
        const ptrdiff_t end = n - b < LNORM_BLOCK ? n : b + LNORM_BLOCK;
        const ptrdiff_t fours = b + (end - b) / (4 * LANES) * (4 * LANES);
        V sum[3] = {SPLAT((T)0), SPLAT((T)0), SPLAT((T)0)};
        ptrdiff_t j = b + l;
        for (; j < fours; j += 4 * LANES) {
            V d[4], d2[4], d3[4];
            for (int i = 0; i < 4; i++)
                terms_of(&d[i], &d2[i], &d3[i], at, j + i * LANES, what);
            sum[0] += SUM_OF(V, d, 4);
            sum[1] += SUM_OF(V, d2, 4);
            if (what == BACKWARD)
                sum[2] += SUM_OF(V, d3, 4);
        }
        for (; j < end; j += LANES) {
            V d, d2, d3;
            terms_of(&d, &d2, &d3, at, j, what);
            sum[0] += d;
            sum[1] += d2;
            if (what == BACKWARD)
                sum[2] += d3;
        }
        for (int k = 0; k < (what == BACKWARD ? 3 : 2); k++) {
            D wide[PARTS];
            widen(wide, sum[k]);
            for (int i = 0; i < PARTS; i++)
                add_to(&lane->of[k][i], wide[i], b == 0);
        }
    }
}

/* The lane tree with lanes in bit-reversed order, so that three sums wait for their other half at most. */
INLINE void sum_columns(double (*sums)[GROUP], const Columns *at, int what)
{
    static const unsigned char reversed[LANES / 4] = {0, 4, 2, 6, 1, 5, 3, 7};
    const int count = what == FIRST ? 1 : what == BACKWARD ? 3 : 2;
    Lane waiting[3], sum, other[3];
    int held = 0;
    for (int i = 0; i < LANES / 4; i++) {
        const int l = reversed[i];
        sum_lane(&sum, at, l, what);
        sum_lane(&other[0], at, l + LANES / 2, what);
        sum_lane(&other[1], at, l + LANES / 4, what);
        sum_lane(&other[2], at, l + LANES / 4 * 3, what);
        add_lane(&sum, &other[0], count);
        add_lane(&other[1], &other[2], count);
        add_lane(&sum, &other[1], count);
        for (int k = i; k & 1; k >>= 1)
            add_lane(&sum, &waiting[--held], count);
        if (held < 3)
            waiting[held++] = sum;
    }
    for (int k = 0; k < count; k++)
        for (int i = 0; i < PARTS; i++)
#if T_SIZE == 8
            *(D *)(sums[k] + i * DW) = sum.of[k][i].sum + sum.of[k][i].rest;
#else
            *(D *)(sums[k] + i * DW) = sum.of[k][i].sum;
#endif
}

/* The statistics of W observations, of which those from begin to end - 1 matter. */
INLINE void stats_of_columns(Stats *s, const T *x, ptrdiff_t step, View *vx, const char *row, int begin, int end)
{
    Columns at = {.x = x, .x_step = step, .n = vx->job->n};
    double sums[2][GROUP], far = FAR;
    T center[GROUP] = {0};
    at.center = load(center);
    if (is_short(at.n)) {
        sum_columns(sums, &at, ALL_SHORT);
        far = FAR_SHORT;
    } else {
        sum_columns(sums, &at, FIRST);
        for (int i = 0; i < W; i++)
            center[i] = (T)(sums[0][i] / (double)(at.n < CENTER ? at.n : CENTER));
        at.center = load(center);
        sum_columns(sums, &at, ALL);
    }
    settle_all(s, sums[0], sums[1], center, W, begin, end, far, vx, row, T_SIZE);
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
    const int roomy = is_roomy(job);
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
    for (int i = 0; i < registers; i++) {
        Stats s;
        const int at = i * W, begin = skip > at ? skip - at : 0, end = skip + m - at < W ? skip + m - at : W;
        stats_of_columns(&s, from + at, stride, vx, x + at * T_SIZE, begin, end);
        for (int l = begin; l < end; l++) {
            if (s.exponent[l] || isnan(s.rstd[l]))
                return 0;
            if (mean) {
                mean[at + l - skip] = s.mean[l];
                rstd[at + l - skip] = s.rstd[l];
            }
        }
        k[i] = load(s.k);
        r[i] = load(s.r);
        c[i] = load(s.c);
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
                else {
                    const int begin = skip > i * W ? skip - i * W : 0,
                              end = skip + m - i * W < W ? skip + m - i * W : W;
                    store_part(to + i * W, v, begin, end);
                }
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
