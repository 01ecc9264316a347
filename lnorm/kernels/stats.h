/* Mean and rstd of a row, right at any offset and any scale.

   With K = mean of the row's first LANES elements and d = x - K, one pass sums d and d². δ = Σd / n is the distance from K
   to the mean and σ² = Σd² / n - δ². When δ² > σ² the subtraction has lost digits: K was far from the mean, and the pass
   is done again around K + δ. When squares leave the range of T, it is done again on the row times a power of two. */

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

INLINE double value_of(const Sum *sum)
{
    D lanes[DU];
    for (int i = 0; i < DU; i++)
        lanes[i] = sum->total[i].sum;
    const double value = fold(lanes);
#if T_SIZE == 8
    for (int i = 0; i < DU; i++)
        lanes[i] = sum->total[i].rest;
    return value + fold(lanes);
#else
    return value;
#endif
}

/* Four terms of a lane are added in pairs: fewer roundings in a row, and no waiting for the last one. */
#define SUM_OF(type, a, rows) ((rows) == 4 ? (type)((a[0] + a[1]) + (a[2] + a[3])) : (type)a[0])

/* The rest of a row, filled up to LANES elements with one that adds nothing. */
INLINE void pad(T *lanes, const T *x, ptrdiff_t m, T fill)
{
    for (ptrdiff_t j = 0; j < LANES; j++)
        lanes[j] = j < m ? x[j] : fill;
}

INLINE T mean_of_first(const T *x, ptrdiff_t m)
{
    T padded[LANES];
    D lanes[DU];
    if (m < LANES) {
        pad(padded, x, m, 0);
        x = padded;
    }
    for (int u = 0; u < U; u++)
        widen(lanes + u * PARTS, load(x + u * W));
    return (T)(fold(lanes) / (double)(m < LANES ? m : LANES));
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

typedef struct {
    Sum d, d2;
} Moments;

/* Σd and Σd² around the center, lane by lane. */
INLINE void add_up(Moments *sum, View *vx, const char *row, int exponent, T center)
{
    const ptrdiff_t n = vx->job->n;
    const V k = SPLAT(center);
    ptrdiff_t i = 0;
    do {
        const ptrdiff_t m = n - i < LNORM_BLOCK ? n - i : LNORM_BLOCK;
        const T *x = get(vx, row, i, m, exponent);
        V d[U] = {0}, d2[U] = {0};
        ptrdiff_t j = 0;
        for (; j + 4 * LANES <= m; j += 4 * LANES)
            add_squares(d, d2, x + j, k, 4);
        for (; j + LANES <= m; j += LANES)
            add_squares(d, d2, x + j, k, 1);
        if (j < m) {
            T padded[LANES];
            pad(padded, x + j, m - j, center);
            add_squares(d, d2, padded, k, 1);
        }
        if (i == 0) {
            add_block(&sum->d, d, 1);
            add_block(&sum->d2, d2, 1);
        } else {
            add_block(&sum->d, d, 0);
            add_block(&sum->d2, d2, 0);
        }
        i += LNORM_BLOCK;
    } while (i < n);
}

/* x̂ = (x·2^exponent - k)·r - c: the mean is k + c/r, not rounded to T, so that no digit is lost at any offset. */
typedef struct {
    T k, r, c;
    int exponent;      /* 0 but for rows near the limits of their type */
    double mean, rstd; /* of the row as it is */
} Stats;

#define XHAT(x, k, r, c) (((x) - (k)) * (r) - (c))

INLINE int settle(Stats *s, double sum_d, double sum_d2, T center, ptrdiff_t n, double epsilon)
{
    const double delta = sum_d / (double)n, var = sum_d2 / (double)n - delta * delta;
    const double spread = (var > 0 ? var : 0) + epsilon, rstd = spread > 0 ? 1 / sqrt(spread) : 0;
    s->k = (T)(center + delta);
    const double left = ((double)center - (double)s->k) + delta; /* what rounding the mean to T leaves */
    s->r = (T)rstd;
    /* Below an eighth of T's epsilon of σ it is nothing, and forward.h can do without. */
    s->c = left * left > EPSILON * EPSILON / 64 * var ? (T)(left * rstd) : 0;
    s->mean = (double)s->k + left;
    s->rstd = rstd;
    if (delta * delta > var)
        return FAR_FROM_MEAN;
    return spread > SAFE_SQUARE && isfinite(var) ? SETTLED : OUT_OF_RANGE;
}

/* The exponent that brings the row's largest magnitude to [1/2, 1); 0 for a row of zeros. False if an element is not
   finite. */
static NOINLINE int scale_to_one(View *vx, const char *row, int *exponent)
{
    double largest = 0;
    for (ptrdiff_t i = 0; i < vx->job->n; i += LNORM_BLOCK) {
        const ptrdiff_t m = vx->job->n - i < LNORM_BLOCK ? vx->job->n - i : LNORM_BLOCK;
        const T *x = get(vx, row, i, m, 0);
        for (ptrdiff_t j = 0; j < m; j++) {
            if (!isfinite(x[j]))
                return 0;
            largest = fabs((double)x[j]) > largest ? fabs((double)x[j]) : largest;
        }
    }
    frexp(largest, exponent);
    *exponent = -*exponent;
    return 1;
}

/* A row for which the first pass was not enough. */
static NOINLINE Stats settle_slowly(View *vx, const char *row)
{
    const ptrdiff_t n = vx->job->n;
    Stats s;
    Moments sum;
    int exponent = 0;
    for (int scaled = 0;; scaled = 1) {
        const double epsilon = ldexp(vx->job->epsilon, 2 * exponent);
        T center = mean_of_first(get(vx, row, 0, n < LNORM_BLOCK ? n : LNORM_BLOCK, exponent), n);
        int state = FAR_FROM_MEAN;
        for (int pass = 0; state == FAR_FROM_MEAN && pass < 3; pass++) {
            add_up(&sum, vx, row, exponent, center);
            state = settle(&s, value_of(&sum.d), value_of(&sum.d2), center, n, epsilon);
            center = s.k;
        }
        if (scaled || state == SETTLED)
            break;
        if (!scale_to_one(vx, row, &exponent))
            return (Stats){.k = 0, .r = (T)NAN, .c = (T)NAN, .mean = NAN, .rstd = NAN};
    }
    s.exponent = exponent;
    s.mean = ldexp(s.mean, -exponent);
    s.rstd = ldexp(s.rstd, exponent);
    return s;
}

/* Several rows step by step: the lane trees and the divisions of one row are waited for while the others' are on their way. */
INLINE void stats_of(Stats *s, View *vx, char *const *row, int rows)
{
    const ptrdiff_t n = vx->job->n;
    T center[ROWS];
    Moments sum[ROWS];
    for (int i = 0; i < rows; i++)
        center[i] = mean_of_first(get(vx, row[i], 0, n < LNORM_BLOCK ? n : LNORM_BLOCK, 0), n);
    for (int i = 0; i < rows; i++)
        add_up(&sum[i], vx, row[i], 0, center[i]);
    for (int i = 0; i < rows; i++) {
        s[i].exponent = 0;
        if (settle(&s[i], value_of(&sum[i].d), value_of(&sum[i].d2), center[i], n, vx->job->epsilon) != SETTLED)
            s[i] = settle_slowly(vx, row[i]);
    }
}
