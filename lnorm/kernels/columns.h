/* Rows across memory: their elements are far apart, while observations stand side by side (channels first). A register
   holds the same element of W observations, and each lane of a sum is a register: the additions of stats.h and the
   formula of forward.h, in the same order, for W rows at once. */

typedef struct {
    Total lane[LANES][PARTS];
} Columns;

/* The lane tree over registers: leaves the sums of the W observations in sum[0 ... W - 1]. */
INLINE void fold_columns(double *sum, D (*lane)[PARTS])
{
    for (int h = LANES / 2; h; h /= 2)
        for (int l = 0; l < h; l++)
            for (int i = 0; i < PARTS; i++)
                lane[l][i] += lane[l + h][i];
    for (int i = 0; i < PARTS; i++)
        *(D *)(sum + i * DW) = lane[0][i];
}

INLINE void value_of_columns(double *sum, const Columns *columns)
{
    D lane[LANES][PARTS];
    for (int l = 0; l < LANES; l++)
        for (int i = 0; i < PARTS; i++)
            lane[l][i] = columns->lane[l][i].sum;
    fold_columns(sum, lane);
#if T_SIZE == 8
    double rest[W];
    for (int l = 0; l < LANES; l++)
        for (int i = 0; i < PARTS; i++)
            lane[l][i] = columns->lane[l][i].rest;
    fold_columns(rest, lane);
    for (int i = 0; i < W; i++)
        sum[i] += rest[i];
#endif
}

INLINE void centers_of_columns(T *center, const char *x, ptrdiff_t stride, ptrdiff_t m)
{
    D lane[LANES][PARTS];
    double sum[W];
    for (int l = 0; l < LANES; l++)
        if (l < m)
            widen(lane[l], load((const T *)(x + l * stride)));
        else
            for (int i = 0; i < PARTS; i++)
                lane[l][i] = (D){0};
    fold_columns(sum, lane);
    for (int i = 0; i < W; i++)
        center[i] = (T)(sum[i] / (double)(m < LANES ? m : LANES));
}

INLINE void add_column(V *sum_d, V *sum_d2, const char *x, ptrdiff_t stride, V k, int rows)
{
    V d[4], d2[4];
    for (int i = 0; i < rows; i++) {
        d[i] = load((const T *)(x + i * stride)) - k;
        d2[i] = d[i] * d[i];
    }
    *sum_d += SUM_OF(V, d, rows);
    *sum_d2 += SUM_OF(V, d2, rows);
}

/* y of W observations. False, and nothing is written, if one of them is not finite or near the limits of its type. */
static NOINLINE int forward_columns(const lnorm_walk *walk, View *vx, View *vscale, View *voffset, double *mean,
                                    double *rstd)
{
    const lnorm_job *job = walk->job;
    const ptrdiff_t n = job->n, x_stride = job->op[LNORM_X].inner[0], y_stride = job->op[LNORM_Y].inner[0];
    const char *x = walk->at[LNORM_X];
    char *y = walk->at[LNORM_Y];
    T center[W];
    Stats s[W];
    Columns sum_d, sum_d2;
    double value_d[W], value_d2[W];
    centers_of_columns(center, x, x_stride, n);
    const V about = load(center);
    for (ptrdiff_t b = 0; b < n; b += LNORM_BLOCK) {
        const ptrdiff_t m = n - b < LNORM_BLOCK ? n - b : LNORM_BLOCK, fours = m / (4 * LANES) * 4;
        for (int l = 0; l < LANES; l++) {
            const char *at = x + (b + l) * x_stride;
            const ptrdiff_t all = l < m ? (m - l + LANES - 1) / LANES : 0;
            V lane_d = {0}, lane_d2 = {0};
            D wide[PARTS];
            ptrdiff_t row = 0;
            for (; row < fours; row += 4)
                add_column(&lane_d, &lane_d2, at + row * LANES * x_stride, LANES * x_stride, about, 4);
            for (; row < all; row++)
                add_column(&lane_d, &lane_d2, at + row * LANES * x_stride, 0, about, 1);
            widen(wide, lane_d);
            for (int i = 0; i < PARTS; i++)
                add_to(&sum_d.lane[l][i], wide[i], b == 0);
            widen(wide, lane_d2);
            for (int i = 0; i < PARTS; i++)
                add_to(&sum_d2.lane[l][i], wide[i], b == 0);
        }
    }
    value_of_columns(value_d, &sum_d);
    value_of_columns(value_d2, &sum_d2);
    T k[W], r[W], c[W];
    for (int i = 0; i < W; i++) {
        s[i].exponent = 0;
        if (settle(&s[i], value_d[i], value_d2[i], center[i], n, job->epsilon) != SETTLED)
            s[i] = settle_slowly(vx, x + i * T_SIZE);
        if (s[i].exponent || isnan(s[i].rstd))
            return 0;
        k[i] = s[i].k;
        r[i] = s[i].r;
        c[i] = s[i].c;
        if (mean) {
            mean[i] = s[i].mean;
            rstd[i] = s[i].rstd;
        }
    }
    const V vk = load(k), vr = load(r), vc = load(c);
    for (ptrdiff_t b = 0; b < n; b += LNORM_BLOCK) {
        const ptrdiff_t m = n - b < LNORM_BLOCK ? n - b : LNORM_BLOCK;
        const T *scale = get(vscale, walk->at[LNORM_SCALE], b, m, 0);
        const T *offset = get(voffset, walk->at[LNORM_OFFSET], b, m, 0);
        for (ptrdiff_t j = 0; j < m; j++) {
            const char *from = x + (b + j) * x_stride;
            char *to = y + (b + j) * y_stride;
            PREFETCH(from + 2 * LINE); /* of the next observations */
            PREFETCH(to + 2 * LINE);
            store((T *)to, XHAT(load((const T *)from), vk, vr, vc) * SPLAT(scale[j]) + SPLAT(offset[j]));
        }
    }
    return 1;
}

/* Whether the next W observations of a job can be taken as columns, wherever they begin. */
INLINE int lies_in_columns(const lnorm_job *job)
{
    const int last = job->outer_ndim - 1;
    return BYTES && last >= 0 && job->inner_ndim == 1 && job->op[LNORM_X].outer[last] == T_SIZE &&
           job->op[LNORM_Y].outer[last] == T_SIZE && job->op[LNORM_SCALE].outer[last] == 0 &&
           job->op[LNORM_OFFSET].outer[last] == 0;
}
