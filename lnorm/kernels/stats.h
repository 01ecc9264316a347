/* Mean and rstd of a row, right at any offset and any scale.

   With K = mean of the row's first CENTER elements (for short rows of floats 0) and d = x - K, one pass sums d and d².
   δ = Σd / n is the distance from K to the mean and σ² = Σd² / n - δ². When δ² > FAR·σ² the subtraction has lost digits:
   K was far from the mean, and the pass is done again around K + δ. When squares leave the range of T, it is done again on
   the row times a power of two. */

/* A sum over a row: element j goes to lane j mod LANES, whatever the register width. A lane of T is emptied into one of
   double precision after each block, so it takes at most LNORM_BLOCK / LANES terms: a lane that holds one large term
   would swallow the small ones that follow. When T is itself double, `rest` keeps what the roundings leave. */
typedef struct {
    D sum;
#if T_SIZE == 8
    D rest;
#endif
} Total;

INLINE void add_to(Total *total, D v, int first)
{
    if (first) {
        *total = (Total){.sum = v};
        return;
    }
#if T_SIZE == 8 /* two-sum: Knuth, TAOCP 2, 4.2.2 */
    const D a = total->sum, t = a + v, z = t - a;
    total->rest += (a - (t - z)) + (v - z);
#endif
    total->sum += v;
}

typedef struct {
    Total total[DU];
} Sum;

INLINE void add_block(Sum *sum, const V *lanes, int first)
{
    for (int u = 0; u < U; u++) {
        D wide[PARTS];
        widen(wide, lanes[u]);
        for (int i = 0; i < PARTS; i++)
            add_to(&sum->total[u * PARTS + i], wide[i], first);
    }
}

/* The sum of a row, folded down to one register. */
INLINE Total total_of(const Sum *sum)
{
    D lanes[DU];
    Total total;
    for (int i = 0; i < DU; i++)
        lanes[i] = sum->total[i].sum;
    total.sum = fold_registers(lanes);
#if T_SIZE == 8
    for (int i = 0; i < DU; i++)
        lanes[i] = sum->total[i].rest;
    total.rest = fold_registers(lanes);
#endif
    return total;
}

/* The sums of one row, or of a multiple of DW. */
INLINE void values_of(double *value, const Total *total, int rows)
{
    D lanes[ROWS];
    for (int i = 0; i < rows; i++)
        lanes[i] = total[i].sum;
    fold_rows(value, lanes, rows);
#if T_SIZE == 8
    double rest[ROWS];
    for (int i = 0; i < rows; i++)
        lanes[i] = total[i].rest;
    fold_rows(rest, lanes, rows);
    for (int i = 0; i < rows; i++)
        value[i] += rest[i];
#endif
}

/* Four terms of a lane are added in pairs: fewer roundings in a row, and no waiting for the last one. */
#define SUM_OF(type, a, rows) ((rows) == 4 ? (type)((a[0] + a[1]) + (a[2] + a[3])) : (type)a[0])

/* Register u of the last m elements of a row, filled up with one that adds nothing. */
INLINE V load_end(const T *x, int u, ptrdiff_t m, T fill)
{
    const ptrdiff_t at = u * W, left = m - at;
    if (left >= W)
        return load(x + at);
    if (left <= 0)
        return SPLAT(fill);
    return load_part(x + at, (int)left, fill);
}

/* The mean of the first CENTER elements of each row, rounded to T. CENTER is a power of two: its inverse gives the same bits. */
INLINE void means_of_first(T *center, const T *const *x, ptrdiff_t n, int rows)
{
    D total[ROWS];
    double sum[ROWS];
    for (int i = 0; i < rows; i++) {
        D lanes[DU];
        for (int u = 0; u < U; u++)
            widen(lanes + u * PARTS, n < LANES ? load_end(x[i], u, n, 0) : load(x[i] + u * W));
        for (int u = 0; u < U && n > LANES; u++) {
            D more[PARTS];
            widen(more, n < CENTER ? load_end(x[i] + LANES, u, n - LANES, 0) : load(x[i] + LANES + u * W));
            for (int k = 0; k < PARTS; k++)
                lanes[u * PARTS + k] += more[k];
        }
        total[i] = fold_registers(lanes);
    }
    fold_rows(sum, total, rows);
    for (int i = 0; i < rows; i += DW)
        store_narrow(center + i,
                     n < CENTER ? *(const D *)(sum + i) / (double)n : *(const D *)(sum + i) * (1.0 / CENTER));
}

INLINE void add_squares(V *sum_d, V *sum_d2, const T *x, V k, int rows)
{
    for (int u = 0; u < U; u++) {
        V d[4], d2[4];
        for (int i = 0; i < rows; i++) {
            d[i] = load(x + i * LANES + u * W) - k;
            d2[i] = d[i] * d[i];
        }
        sum_d[u] += SUM_OF(V, d, rows);
        sum_d2[u] += SUM_OF(V, d2, rows);
    }
}

/* Σd and Σd² of a block, and of a row up to some block. */
typedef struct {
    V d[U], d2[U];
} Lanes;

typedef struct {
    Sum d, d2;
} Sums;

/* A block's d around the center and d², lane by lane; meanwhile, what is pending of the row before, if any, is written. */
INLINE void add_up(Lanes *lanes, const T *x, ptrdiff_t m, T center, Pending *pending)
{
    const V k = SPLAT(center);
    V d[U], d2[U];
    ptrdiff_t j = 0;
    UNROLL for (int u = 0; u < U; u++) d[u] = d2[u] = SPLAT((T)0);
    for (; j + 4 * LANES <= m; j += 4 * LANES) {
        if (pending)
            fetch_pages(x + j, 4 * LANES * T_SIZE);
        add_squares(d, d2, x + j, k, 4);
        if (pending)
            write_some(pending);
    }
    for (; j + LANES <= m; j += LANES)
        add_squares(d, d2, x + j, k, 1);
    for (int u = 0; u < U; u++) {
        if (j < m) {
            const V end = load_end(x + j, u, m - j, center) - k;
            d[u] += end;
            d2[u] += end * end;
        }
        lanes->d[u] = d[u];
        lanes->d2[u] = d2[u];
    }
}

INLINE void empty_lanes(Sums *sums, const Lanes *lanes, int first)
{
    add_block(&sums->d, lanes->d, first);
    add_block(&sums->d2, lanes->d2, first);
}

INLINE void add_sum(Sum *total, const Sum *sum)
{
    for (int i = 0; i < DU; i++) {
        add_to(&total->total[i], sum->total[i].sum, 0);
#if T_SIZE == 8
        total->total[i].rest += sum->total[i].rest;
#endif
    }
}

/* The sums of a segment behind those of the segments before it. */
INLINE void add_segment(Sums *total, const Sums *segment, int first)
{
    if (first) {
        *total = *segment;
        return;
    }
    add_sum(&total->d, &segment->d);
    add_sum(&total->d2, &segment->d2);
}

/* A row's sums on the way: of the segment at hand, and of those before it. A long row is summed in segments, each from
   nothing, so that threads that share it come to the same bits as one alone. */
typedef struct {
    Sums segment, before;
} RowSums;

/* The block of elements b ... end - 1. */
INLINE void add_to_row(RowSums *sums, const Lanes *lanes, ptrdiff_t b, ptrdiff_t end, ptrdiff_t n)
{
    if (b % LNORM_SEGMENT == 0)
        empty_lanes(&sums->segment, lanes, 1);
    else
        empty_lanes(&sums->segment, lanes, 0);
    if (n > LNORM_SEGMENT && (end % LNORM_SEGMENT == 0 || end == n))
        add_segment(&sums->before, &sums->segment, b < LNORM_SEGMENT);
}

INLINE const Sums *sums_of_row(const RowSums *sums, ptrdiff_t n)
{
    return n > LNORM_SEGMENT ? &sums->before : &sums->segment;
}

/* Roundings of Σd² and Σd that all go one way, as they can where a row repeats a few values, reach σ² multiplied by 1 + δ²/σ²
   and 2δ/σ. The worst rows that a search finds have an error of 6.5 epsilon with 1, 4.0 with 1/4, 3.6 with 1/8 and 3.4 with
   1/16, beyond which 5 % of random rows lie: tests/trials/worst_rows.py. */
#define FAR 0x1p-4

/* Short rows of floats are summed in double precision from the start: squares are exact, and there is no center to find. */
#define FAR_SHORT 0x1p20 /* σ² keeps 30 bits */

INLINE int is_short(ptrdiff_t n) { return T_SIZE == 4 && 1 < n && n <= SHORT; }

INLINE void add_wide_squares(D *sum, D *sum2, D wide)
{
    *sum += wide;
    *sum2 += wide * wide;
}

#if T_SIZE == 4
/* Σx and Σx² of a short row. */
INLINE void add_up_short(Total *total, Total *total2, const T *x, ptrdiff_t n)
{
    D sum[DU], sum2[DU];
    ptrdiff_t j = 0;
    for (int i = 0; i < DU; i++) { /* no addition for the first of a lane */
        sum[i] = LANES <= n ? load_wide(x + i * DW) : (D){0};
        sum2[i] = sum[i] * sum[i];
    }
    if (LANES <= n)
        j = LANES;
    for (; j + LANES <= n; j += LANES)
        for (int i = 0; i < DU; i++)
            add_wide_squares(&sum[i], &sum2[i], load_wide(x + j + i * DW));
    UNROLL for (int i = 0; i < DU && j < n; i++)
    {
        const ptrdiff_t at = j + i * DW;
        if (at + DW <= n)
            add_wide_squares(&sum[i], &sum2[i], load_wide(x + at));
        else if (at < n)
            add_wide_squares(&sum[i], &sum2[i], load_wide_part(x + at, (int)(n - at)));
    }
    total->sum = fold_registers(sum);
    total2->sum = fold_registers(sum2);
}
#endif

/* Of each row of a group, x̂ = (x·2^exponent - k)·r - c: the mean is k + c/r, not rounded to T, so that no digit is lost at
   any offset. Below an eighth of T's epsilon, c is nothing and left at 0. */
typedef struct {
    T k[GROUP] __attribute__((aligned(LINE))), r[GROUP], c[GROUP];
    double mean[GROUP], rstd[GROUP]; /* of the rows as they are */
    int64_t state[GROUP];
    int exponent[GROUP]; /* 0 but for rows near the limits of their type */
} Stats;

/* The statistics from the sums around the centers: good as far as δ² <= far·σ². Around a mean that was rounded to T, δ is that
   rounding, and may be large beside a σ² whose squares vanish, but not beside σ² + ε. Returns 0 if all rows are settled. */
INLINE int64_t settle(Stats *s, const double *sum_d, const double *sum_d2, const T *center, int rows, ptrdiff_t n,
                      double epsilon, double far, int recentred)
{
    const double share = 1.0 / (double)n;
    int64_t states = 0;
    for (int i = 0; i < rows; i += DW) {
        const D about = load_wide(center + i);
        const D delta = *(const D *)(sum_d + i) * share, var = *(const D *)(sum_d2 + i) * share - delta * delta;
        const D spread = only_where(WHERE(var > 0), var) + epsilon;
        const D rstd = only_where(WHERE(spread > 0), 1 / square_root(spread));
        store_narrow(s->k + i, about + delta);
        const D k = load_wide(s->k + i), left = (about - k) + delta; /* what rounding the mean to T leaves */
        const I off_center = WHERE(left * left >= EPSILON * EPSILON / 64 * var);
        store_narrow(s->r + i, rstd);
        store_narrow(s->c + i, only_where(off_center, left * rstd));
        *(D *)(s->mean + i) = k + left;
        *(D *)(s->rstd + i) = rstd;
        *(I *)(s->state + i) = (WHERE(delta * delta > far * (recentred ? spread : var)) & FAR_FROM_MEAN) |
                               (~(WHERE(spread > SAFE_SQUARE) & WHERE(var + epsilon < 1 / SAFE_SQUARE)) & OUT_OF_RANGE);
    }
    for (int i = 0; i < rows; i++)
        states |= s->state[i];
    return states;
}

/* The exponent that brings the row's largest magnitude to [1/2, 1), 0 for a row of zeros, and whether all elements are
   equal. False if an element is not finite. */
static NOINLINE int scale_to_one(View *vx, const char *row, int *exponent, int *constant)
{
    double low = INFINITY, high = -INFINITY;
    for (ptrdiff_t i = 0; i < vx->job->n; i += LNORM_BLOCK) {
        const ptrdiff_t m = vx->job->n - i < LNORM_BLOCK ? vx->job->n - i : LNORM_BLOCK;
        const T *x = get(vx, row, i, m, 0);
        for (ptrdiff_t j = 0; j < m; j++) {
            if (!isfinite(x[j]))
                return 0;
            low = x[j] < low ? x[j] : low;
            high = x[j] > high ? x[j] : high;
        }
    }
    frexp(-low > high ? low : high, exponent);
    *exponent = -*exponent;
    *constant = low == high;
    return 1;
}

/* Row i of a group, for which the first pass was not enough: again around the mean that it came to. */
static NOINLINE void settle_slowly(Stats *group, int i, View *vx, const char *row)
{
    const ptrdiff_t n = vx->job->n;
    Stats s;
    int exponent = 0, finite = 1, constant = 0;
    for (int scaled = 0;; scaled = 1) {
        const double epsilon = ldexp(vx->job->epsilon, 2 * exponent);
        T center[ROWS] = {group->k[i]};
        if (scaled) {
            const T *first = get(vx, row, 0, n < LNORM_BLOCK ? n : LNORM_BLOCK, exponent);
            means_of_first(center, &first, n, 1);
        }
        int64_t state = FAR_FROM_MEAN;
        for (int pass = 0; state & FAR_FROM_MEAN && pass < 3; pass++) {
            double d[ROWS], d2[ROWS];
            Sums sums;
            ptrdiff_t b = 0;
            do {
                const ptrdiff_t m = n - b < LNORM_BLOCK ? n - b : LNORM_BLOCK;
                Lanes lanes;
                add_up(&lanes, get(vx, row, b, m, exponent), m, *center, NULL);
                empty_lanes(&sums, &lanes, b == 0);
                b += m;
            } while (b < n);
            const Total total_d = total_of(&sums.d), total_d2 = total_of(&sums.d2);
            values_of(d, &total_d, 1);
            values_of(d2, &total_d2, 1);
            const int recentred = !scaled || pass > 0;
            state = settle(&s, d, d2, center, 1, n, epsilon, recentred ? 1 : FAR, recentred);
            *center = *s.k;
        }
        if (scaled || state == SETTLED)
            break;
        finite = scale_to_one(vx, row, &exponent, &constant);
        if (!finite || constant)
            break;
        if (vx->job->epsilon > 0 && ilogb(vx->job->epsilon) + 2 * exponent > 0) /* g·rstd must not underflow */
            exponent = -ilogb(vx->job->epsilon) / 2;
    }
    if (constant) { /* epsilon is all there is, and would not bear the scaling */
        const double rstd = vx->job->epsilon > 0 ? 1 / sqrt(vx->job->epsilon) : 0;
        exponent = 0;
        *s.k = *get(vx, row, 0, n < LNORM_BLOCK ? n : LNORM_BLOCK, 0);
        *s.r = isfinite((T)rstd) ? (T)rstd : 0; /* times x - k = 0 */
        *s.c = 0;
        *s.mean = *s.k;
        *s.rstd = rstd;
    }
    group->k[i] = finite ? *s.k : 0;
    group->r[i] = finite ? *s.r : (T)NAN;
    group->c[i] = finite ? *s.c : (T)NAN;
    group->exponent[i] = finite ? exponent : 0;
    group->mean[i] = finite ? ldexp(*s.mean, -exponent) : NAN;
    group->rstd[i] = finite ? ldexp(*s.rstd, exponent) : NAN;
}

/* A group of rows on the way to their statistics: begin, then every block of each row in order, then finish. */
typedef struct {
    T center[ROWS] __attribute__((aligned(LINE)));
    Total total_d[ROWS], total_d2[ROWS] __attribute__((aligned(LINE)));
} Progress;

INLINE void begin_stats(Progress *progress, const T *const *first, ptrdiff_t n, int rows)
{
    if (is_short(n))
        fill(progress->center, ROWS, 0);
    else
        means_of_first(progress->center, first, n, rows);
}

/* The m elements from the b-th on of row i; sums is for as long as the row lasts. */
INLINE void add_to_stats(Progress *progress, int i, RowSums *sums, const T *x, ptrdiff_t b, ptrdiff_t m, ptrdiff_t n)
{
#if T_SIZE == 4
    if (is_short(n)) {
        add_up_short(&progress->total_d[i], &progress->total_d2[i], x, n);
        return;
    }
#endif
    Lanes lanes;
    add_up(&lanes, x, m, progress->center[i], NULL);
    add_to_row(sums, &lanes, b, b + m, n);
    if (b + m == n) {
        progress->total_d[i] = total_of(&sums_of_row(sums, n)->d);
        progress->total_d2[i] = total_of(&sums_of_row(sums, n)->d2);
    }
}

static NOINLINE void sum_segments(Total *total_d, Total *total_d2, const T *x, ptrdiff_t n, T center, Pending *pending)
{
    RowSums sums;
    ptrdiff_t b = 0;
    do {
        const ptrdiff_t m = n - b < LNORM_BLOCK ? n - b : LNORM_BLOCK;
        Lanes lanes;
        add_up(&lanes, x + b, m, center, pending);
        add_to_row(&sums, &lanes, b, b + m, n);
        b += m;
    } while (b < n);
    *total_d = total_of(&sums_of_row(&sums, n)->d);
    *total_d2 = total_of(&sums_of_row(&sums, n)->d2);
}

/* The sums of a whole row whose elements stand side by side. Those of one segment stay in registers, and so do the totals,
   whose addresses no other function is given. */
INLINE void sum_row(Total *total_d, Total *total_d2, const T *x, ptrdiff_t n, T center, Pending *pending)
{
#if T_SIZE == 4
    if (is_short(n)) {
        add_up_short(total_d, total_d2, x, n);
        return;
    }
#endif
    if (n > LNORM_SEGMENT) {
        Total d, d2;
        sum_segments(&d, &d2, x, n, center, pending);
        *total_d = d;
        *total_d2 = d2;
        return;
    }
    Sums sums;
    ptrdiff_t b = 0;
    do {
        Lanes lanes;
        add_up(&lanes, x + b, n - b < LNORM_BLOCK ? n - b : LNORM_BLOCK, center, pending);
        if (b == 0)
            empty_lanes(&sums, &lanes, 1);
        else
            empty_lanes(&sums, &lanes, 0);
        b += LNORM_BLOCK;
    } while (b < n);
    *total_d = total_of(&sums.d);
    *total_d2 = total_of(&sums.d2);
}

INLINE int64_t settle_rows(Stats *s, const Progress *progress, ptrdiff_t n, double epsilon, int rows)
{
    double d[ROWS], d2[ROWS];
    values_of(d, progress->total_d, rows);
    values_of(d2, progress->total_d2, rows);
    return settle(s, d, d2, progress->center, rows, n, epsilon, is_short(n) ? FAR_SHORT : FAR, 0);
}

/* One row alone, wherever its elements are: begin_row, then its blocks in order, then finish_row. */
static NOINLINE void begin_row(Progress *progress, View *vx, const char *row)
{
    const ptrdiff_t n = vx->job->n;
    const T *first = get(vx, row, 0, n < LNORM_BLOCK ? n : LNORM_BLOCK, 0);
    begin_stats(progress, &first, n, 1);
}

static NOINLINE void finish_row(Stats *s, const Progress *progress, View *vx, const char *row)
{
    *s->exponent = 0;
    if (settle_rows(s, progress, vx->job->n, vx->job->epsilon, 1) != SETTLED)
        settle_slowly(s, 0, vx, row);
}

static NOINLINE void stats_of(Stats *s, View *vx, const char *row)
{
    const ptrdiff_t n = vx->job->n;
    Progress progress;
    RowSums sums;
    begin_row(&progress, vx, row);
    ptrdiff_t b = 0;
    do {
        const ptrdiff_t m = n - b < LNORM_BLOCK ? n - b : LNORM_BLOCK;
        add_to_stats(&progress, 0, &sums, get(vx, row, b, m, 0), b, m, n);
        b += m;
    } while (b < n);
    finish_row(s, &progress, vx, row);
}
