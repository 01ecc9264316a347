/* Rows across memory: their elements are far apart, while observations stand side by side (channels first). A register
   holds the same element of W observations, and each lane of a sum is a register: the additions of stats.h and the
   formula of forward.h, in the same order, for W rows at once. A tile of observations, one cache line or
   four, is first brought together, so that memory is read once and in runs: planes that lie a power of two apart push each
   other out of the caches. */

#define NARROW (LINE / T_SIZE) /* observations in a tile */
#define TILE (4 * NARROW)
#define TILE_BYTES (1 << 16)

#if BYTES

/* Σd and Σd² of one lane, or the sum of such: for W observations each. */
typedef struct {
    Total d[PARTS], d2[PARTS];
} Lane;

INLINE void add_lane(Lane *sum, const Lane *lane)
{
    for (int i = 0; i < PARTS; i++) {
        sum->d[i].sum += lane->d[i].sum;
        sum->d2[i].sum += lane->d2[i].sum;
#if T_SIZE == 8
        sum->d[i].rest += lane->d[i].rest;
        sum->d2[i].rest += lane->d2[i].rest;
#endif
    }
}

/* A lane of means_of_first, add_up_short or add_up: elements l, l + LANES, ... */
INLINE void sum_lane(Lane *lane, const T *x, ptrdiff_t stride, ptrdiff_t n, ptrdiff_t l, V center, int what)
{
    *lane = (Lane){0};
    if (what != ALL) {
        for (ptrdiff_t j = l; j < n && (what != FIRST || j < LANES); j += LANES) {
            D wide[PARTS];
            widen(wide, load(x + j * stride));
            for (int i = 0; i < PARTS; i++) {
                lane->d[i].sum += wide[i];
                if (what == ALL_SHORT)
                    lane->d2[i].sum += wide[i] * wide[i];
            }
        }
        return;
    }
    for (ptrdiff_t b = 0; b < n; b += LNORM_BLOCK) {
        const ptrdiff_t end = n - b < LNORM_BLOCK ? n : b + LNORM_BLOCK,
                        fours = b + (end - b) / (4 * LANES) * (4 * LANES);
        V sum_d = {0}, sum_d2 = {0};
        D wide[PARTS];
        ptrdiff_t j = b + l;
        for (; j < fours; j += 4 * LANES) {
            V d[4], d2[4];
            for (int i = 0; i < 4; i++) {
                d[i] = load(x + (j + i * LANES) * stride) - center;
                d2[i] = d[i] * d[i];
            }
            sum_d += SUM_OF(V, d, 4);
            sum_d2 += SUM_OF(V, d2, 4);
        }
        for (; j < end; j += LANES) {
            const V d = load(x + j * stride) - center;
            sum_d += d;
            sum_d2 += d * d;
        }
        widen(wide, sum_d);
        for (int i = 0; i < PARTS; i++)
            add_to(&lane->d[i], wide[i], b == 0);
        widen(wide, sum_d2);
        for (int i = 0; i < PARTS; i++)
            add_to(&lane->d2[i], wide[i], b == 0);
    }
}

/* The lane tree with lanes in bit-reversed order, so that three sums wait for their other half at most. */
INLINE void sum_columns(double *sum_d, double *sum_d2, const T *x, ptrdiff_t stride, ptrdiff_t n, V center, int what)
{
    static const unsigned char reversed[LANES / 4] = {0, 4, 2, 6, 1, 5, 3, 7};
    Lane waiting[3], sum, other[3];
    int count = 0;
    for (int i = 0; i < LANES / 4; i++) {
        const int l = reversed[i];
        sum_lane(&sum, x, stride, n, l, center, what);
        sum_lane(&other[0], x, stride, n, l + LANES / 2, center, what);
        sum_lane(&other[1], x, stride, n, l + LANES / 4, center, what);
        sum_lane(&other[2], x, stride, n, l + LANES / 4 * 3, center, what);
        add_lane(&sum, &other[0]);
        add_lane(&other[1], &other[2]);
        add_lane(&sum, &other[1]);
        for (int k = i; k & 1; k >>= 1)
            add_lane(&sum, &waiting[--count]);
        if (count < 3)
            waiting[count++] = sum;
    }
    for (int i = 0; i < PARTS; i++) {
#if T_SIZE == 8
        *(D *)(sum_d + i * DW) = sum.d[i].sum + sum.d[i].rest;
        *(D *)(sum_d2 + i * DW) = sum.d2[i].sum + sum.d2[i].rest;
#else
        *(D *)(sum_d + i * DW) = sum.d[i].sum;
        *(D *)(sum_d2 + i * DW) = sum.d2[i].sum;
#endif
    }
}

/* The statistics of W observations, the first `real` of which there are. */
INLINE void stats_of_columns(Stats *s, const T *x, ptrdiff_t stride, View *vx, const char *row, int real)
{
    const ptrdiff_t n = vx->job->n;
    double d[GROUP], d2[GROUP], far = 1;
    T center[GROUP] = {0};
    if (is_short(n)) {
        sum_columns(d, d2, x, stride, n, load(center), ALL_SHORT);
        far = FAR_SHORT;
    } else {
        sum_columns(d, d2, x, stride, n, load(center), FIRST);
        for (int i = 0; i < W; i++)
            center[i] = (T)(d[i] / (double)(n < LANES ? n : LANES));
        sum_columns(d, d2, x, stride, n, load(center), ALL);
    }
    settle_all(s, d, d2, center, W, real, far, vx, row, T_SIZE);
}

/* y of m observations, at most `registers` full of them. False, and nothing is written, if one of them is not finite or near
   the limits of its type. */
INLINE int forward_tile(const lnorm_walk *walk, View *vx, View *vscale, View *voffset, double *mean, double *rstd,
                        int m, int registers)
{
    const lnorm_job *job = walk->job;
    const ptrdiff_t n = job->n, x_stride = job->op[LNORM_X].inner[0], y_stride = job->op[LNORM_Y].inner[0];
    const int width = registers * W, streamed = job->stream && m == width && y_stride % LINE == 0;
    const int roomy = x_stride % 4096 != 0; /* the caches have room for the next tile too */
    const char *x = walk->at[LNORM_X];
    char *y = walk->at[LNORM_Y];
    T tile[TILE_BYTES / T_SIZE] __attribute__((aligned(LINE)));
    V k[TILE / W], r[TILE / W], c[TILE / W];
    const T *from = tile;
    ptrdiff_t stride = width;
    if (roomy && m == width) {
        from = (const T *)x;
        stride = x_stride / T_SIZE;
    }
    for (ptrdiff_t j = 0; from == tile && j < n; j++) {
        const T *from = (const T *)(x + j * x_stride);
        T *to = tile + j * width;
        if (m == width)
            for (int i = 0; i < registers; i++)
                store(to + i * W, load(from + i * W));
        else
            for (int i = 0; i < width; i++)
                to[i] = from[i < m ? i : 0];
    }
    for (int i = 0; i < registers; i++) {
        Stats s;
        const int at = i * W, real = m - at < W ? (m > at ? m - at : 0) : W;
        stats_of_columns(&s, from + at, stride, vx, x + at * T_SIZE, real);
        for (int l = 0; l < real; l++) {
            if (s.exponent[l] || isnan(s.rstd[l]))
                return 0;
            if (mean) {
                mean[at + l] = s.mean[l];
                rstd[at + l] = s.rstd[l];
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
            T *to = (T *)(y + j * y_stride), last[W];
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
                else if (m >= (i + 1) * W)
                    store(to + i * W, v);
                else {
                    store(last, v);
                    for (int l = 0; l < m - i * W; l++)
                        to[i * W + l] = last[l];
                }
            }
        }
    }
    return 1;
}

static NOINLINE int forward_wide_tile(const lnorm_walk *walk, View *vx, View *vscale, View *voffset, double *mean,
                                      double *rstd)
{
    return forward_tile(walk, vx, vscale, voffset, mean, rstd, TILE, TILE / W);
}

static NOINLINE int forward_narrow_tile(const lnorm_walk *walk, View *vx, View *vscale, View *voffset, double *mean,
                                        double *rstd, int m)
{
    return forward_tile(walk, vx, vscale, voffset, mean, rstd, m, NARROW / W);
}

#endif

/* Whether the observations of a job can be taken as columns, wherever they begin. */
INLINE int lies_in_columns(const lnorm_job *job)
{
    const int last = job->outer_ndim - 1;
    return BYTES && last >= 0 && job->inner_ndim == 1 && job->n * LINE <= TILE_BYTES &&
           job->op[LNORM_X].outer[last] == T_SIZE && job->op[LNORM_Y].outer[last] == T_SIZE &&
           job->op[LNORM_SCALE].outer[last] == 0 && job->op[LNORM_OFFSET].outer[last] == 0;
}

/* The next tile of at most m observations: how many were written, or the negative of how many have to be taken one by one. */
INLINE int forward_columns(const lnorm_walk *walk, View *vx, View *vscale, View *voffset, double *mean, double *rstd,
                           ptrdiff_t most)
{
#if BYTES
    const lnorm_job *job = walk->job;
    const ptrdiff_t head = job->op[LNORM_Y].inner[0] % LINE ? 0 : until_aligned((const T *)walk->at[LNORM_Y], LINE);
    int m = (int)(most < NARROW ? most : NARROW), done;
    if (head)
        m = head < most ? (int)head : m;
    if (m == NARROW && most >= TILE && job->n * TILE * T_SIZE <= TILE_BYTES) {
        m = TILE;
        done = forward_wide_tile(walk, vx, vscale, voffset, mean, rstd);
    } else
        done = forward_narrow_tile(walk, vx, vscale, voffset, mean, rstd, m);
    return done ? m : -m;
#else
    (void)walk, (void)vx, (void)vscale, (void)voffset, (void)mean, (void)rstd;
    return -(int)most;
#endif
}
