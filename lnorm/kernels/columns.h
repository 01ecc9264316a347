/* Rows across memory: their elements are far apart, while observations stand side by side (channels first). A strip of
   observations is taken at a time, element after element, so that memory is read in long runs. A register holds the same
   element of W observations, and each lane of a sum is a register: the additions of stats.h, in the same order, for W rows
   at once.

   The registers of a strip begin at 0, W, 2·W, ...; the last one ends where the strip does, and may so hold observations
   of the one before. */

#define STRIP (LNORM_STRIP_BYTES / T_SIZE)
#define SPAN 2 /* registers whose sums are taken together */

/* Elements of an observation up to which four lanes are summed at a time: they lie on n / 8 pages, twice as many in the
   backward pass, and a processor knows the places of 64 at once. */
#define NEAR 256

/* Elements of an observation up to which those of a lane and of the next one find room in the first level, also where all begin at
   the same place of a page. */
#define FITTING 512

typedef struct {
    const T *x, *dy, *scale;
    ptrdiff_t x_step, dy_step, scale_step, n; /* steps in elements */
    int m;                                    /* observations, at least W */
    int span, registers;                      /* registers that are taken together, and all of them */
    int crowded; /* its elements are far, and begin at the same place of a page: the caches have room for few of them at once */
    /* of each observation: what its sums are centred on; see Stats, and lnorm_row for the backward pass */
    T center[STRIP] __attribute__((aligned(LINE)));
    T k[STRIP], r[STRIP], c[STRIP], mean_g[STRIP], mean_gx[STRIP];
} Strip;

INLINE void strip_of(Strip *strip, const lnorm_walk *walk, int m)
{
    const lnorm_operand *op = walk->job->op;
    strip->x = (const T *)walk->at[LNORM_X];
    strip->dy = (const T *)walk->at[LNORM_DY];
    strip->scale = (const T *)walk->at[LNORM_SCALE];
    strip->x_step = op[LNORM_X].inner[0] / T_SIZE;
    strip->dy_step = op[LNORM_DY].inner[0] / T_SIZE;
    strip->scale_step = op[LNORM_SCALE].inner[0] / T_SIZE;
    strip->n = walk->job->n;
    strip->m = m;
    strip->crowded = strip->x_step * T_SIZE % PAGE == 0 && walk->job->size > ROOM;
    strip->span = m < SPAN * W ? 1 : SPAN;
    strip->registers = (m + strip->span * W - 1) / (strip->span * W) * strip->span;
}

/* How far from an element that is written that one is which is fetched: the same of the next observations or, because a crowded strip
   is no longer in the caches, one that is written soon. */
INLINE ptrdiff_t ahead_of(const Strip *strip, ptrdiff_t step) { return strip->crowded ? 2 * step : strip->m; }

/* The first observation in register i. */
INLINE int place_of(const Strip *strip, int i)
{
    const int first = i / strip->span * strip->span, end = (first + strip->span) * W;
    return i * W - (end > strip->m ? end - strip->m : 0);
}

/* One lane of up to three sums, or the sum of several lanes. */
typedef struct {
    Total of[3][STRIP / DW];
} Lane;

/* The terms of add_squares in stats.h, or those of add_terms in backward.h, for one element of W observations. */
INLINE void terms_of(V *d, V *d2, V *d3, const T *x, const T *dy, const T *scale, V center, V rstd, int what)
{
    *d = load(x) - center;
    *d2 = *d * *d;
    if (what == BACKWARD) {
        *d = *d * rstd;
        *d2 = SPLAT(*scale) * load(dy);
        *d3 = *d2 * *d;
    }
}

/* Lane l of the observations in some registers from p on: elements l, l + LANES, ... of means_of_first, add_up_short, add_up,
   or backward.h's sums. Those of x that are so many elements ahead are fetched. */
INLINE void sum_lane(Total (*lane)[SPAN * PARTS], const Strip *strip, ptrdiff_t l, int p, ptrdiff_t ahead, int what,
                     int registers)
{
    const ptrdiff_t n = strip->n, x_step = LANES * strip->x_step;
    const T *x = strip->x + l * strip->x_step + p;
    if (what == FIRST || what == ALL_SHORT) {
        D sum[2][SPAN * PARTS];
        for (int i = 0; i < registers * PARTS; i++)
            sum[0][i] = sum[1][i] = (D){0};
        for (ptrdiff_t j = l; j < n && (what == ALL_SHORT || j < CENTER); j += LANES, x += x_step)
            for (int i = 0; i < registers * PARTS; i++) {
                const D wide = load_wide(x + i * DW);
                if (i % PARTS == 0)
                    PREFETCH(x + i * DW + ahead);
                sum[0][i] += wide;
                if (what == ALL_SHORT)
                    sum[1][i] += wide * wide;
            }
        for (int k = 0; k < (what == FIRST ? 1 : 2); k++)
            for (int i = 0; i < registers * PARTS; i++)
                add_to(&lane[k][i], sum[k][i], 1);
        return;
    }
    const int sums = what == BACKWARD ? 3 : 2;
    const ptrdiff_t dy_step = what == BACKWARD ? LANES * strip->dy_step : 0;
    const ptrdiff_t scale_step = what == BACKWARD ? LANES * strip->scale_step : 0;
    const T *dy = what == BACKWARD ? strip->dy + l * strip->dy_step + p : NULL;
    const T *scale = what == BACKWARD ? strip->scale + l * strip->scale_step : NULL;
    V center[SPAN], rstd[SPAN];
    for (int i = 0; i < registers; i++) {
        center[i] = load(strip->center + p + i * W);
        rstd[i] = what == BACKWARD ? load(strip->r + p + i * W) : center[i];
    }
    for (int k = 0; k < sums; k++)
        for (int i = 0; i < registers * PARTS; i++)
            lane[k][i] = (Total){0};
    for (ptrdiff_t b = 0; b < n; b += LNORM_BLOCK) {
        const ptrdiff_t m = n - b < LNORM_BLOCK ? n - b : LNORM_BLOCK, fours = m / (4 * LANES) * (4 * LANES);
        V sum[3][SPAN];
        for (int k = 0; k < sums; k++)
            for (int i = 0; i < registers; i++)
                sum[k][i] = SPLAT((T)0);
        ptrdiff_t j = l;
        for (; j < fours; j += 4 * LANES, x += 4 * x_step, dy += 4 * dy_step, scale += 4 * scale_step)
            for (int i = 0; i < registers; i++) {
                V d[4], d2[4], d3[4];
                for (int q = 0; q < 4; q++)
                    PREFETCH(x + q * x_step + i * W + ahead);
                for (int q = 0; q < 4; q++)
                    terms_of(&d[q], &d2[q], &d3[q], x + q * x_step + i * W, dy + q * dy_step + i * W,
                             scale + q * scale_step, center[i], rstd[i], what);
                sum[0][i] += SUM_OF(V, d, 4);
                sum[1][i] += SUM_OF(V, d2, 4);
                if (what == BACKWARD)
                    sum[2][i] += SUM_OF(V, d3, 4);
            }
        for (; j < m; j += LANES, x += x_step, dy += dy_step, scale += scale_step)
            for (int i = 0; i < registers; i++) {
                V d, d2, d3;
                terms_of(&d, &d2, &d3, x + i * W, dy + i * W, scale, center[i], rstd[i], what);
                sum[0][i] += d;
                sum[1][i] += d2;
                if (what == BACKWARD)
                    sum[2][i] += d3;
            }
        for (int k = 0; k < sums; k++)
            for (int i = 0; i < registers; i++) {
                D wide[PARTS];
                widen(wide, sum[k][i]);
                for (int h = 0; h < PARTS; h++)
                    add_to(&lane[k][i * PARTS + h], wide[h], b == 0);
            }
    }
}

/* The sums of some lanes, and of others. */
INLINE void add_sums(Total (*sum)[SPAN * PARTS], Total (*other)[SPAN * PARTS], int sums, int registers)
{
    UNROLL for (int k = 0; k < sums; k++) UNROLL for (int i = 0; i < registers * PARTS; i++)
    {
        sum[k][i].sum += other[k][i].sum;
#if T_SIZE == 8
        sum[k][i].rest += other[k][i].rest;
#endif
    }
}

/* Lane l, or four lanes that stand at the same knot of the tree, and the parts of it that wait for them: their sum takes the
   place of the first. */
INLINE void add_lanes(Lane *waiting, int parts, const Strip *strip, ptrdiff_t l, int lanes, int first, ptrdiff_t ahead,
                      int what, int registers)
{
    const int sums = what == FIRST ? 1 : what == BACKWARD ? 3 : 2;
    Total a[3][SPAN * PARTS], b[3][SPAN * PARTS], c[3][SPAN * PARTS];
    const int p = place_of(strip, first);
    first *= PARTS;
    sum_lane(a, strip, l, p, ahead, what, registers);
    if (lanes == 4) {
        sum_lane(b, strip, l + LANES / 2, p, ahead, what, registers);
        add_sums(a, b, sums, registers);
        sum_lane(b, strip, l + LANES / 4, p, ahead, what, registers);
        sum_lane(c, strip, l + LANES / 2 + LANES / 4, p, ahead, what, registers);
        add_sums(b, c, sums, registers);
        add_sums(a, b, sums, registers);
    }
    for (int h = parts - 1; h >= 0; h--)
        UNROLL for (int k = 0; k < sums; k++) UNROLL for (int i = 0; i < registers * PARTS; i++)
        {
            a[k][i].sum += waiting[h].of[k][first + i].sum;
#if T_SIZE == 8
            a[k][i].rest += waiting[h].of[k][first + i].rest;
#endif
        }
    for (int k = 0; k < sums; k++)
        UNROLL for (int i = 0; i < registers * PARTS; i++) waiting->of[k][first + i] = a[k][i];
}

/* The lane tree with lanes in bit-reversed order, so that a sum waits for its other half as short as can be: one of them at
   each of the WAITING levels. What it comes to is in the first. */
#define WAITING 5
INLINE void sum_lanes(Lane *sums, const Strip *strip, int what, int lanes, int span)
{
    static const unsigned char reversed[LANES] = {0, 16, 8, 24, 4, 20, 12, 28, 2, 18, 10, 26, 6, 22, 14, 30,
                                                  1, 17, 9, 25, 5, 21, 13, 29, 3, 19, 11, 27, 7, 23, 15, 31};
    Lane *waiting = sums;
    for (int i = 0; i < LANES / lanes; i++, waiting++) {
        int parts = 0;
        for (; i >> parts & 1; parts++)
            waiting--;
        const int lane = reversed[i * lanes], last = i + 1 == LANES / lanes || (strip->crowded && strip->n > FITTING);
        const ptrdiff_t ahead = last ? 0 : (reversed[(i + 1) * lanes] - lane) * strip->x_step;
        for (int first = 0; first < strip->registers; first += span)
            add_lanes(waiting, parts, strip, lane, lanes, first, ahead, what, span);
    }
}

/* Lanes one by one where a strip is narrow, or its elements are many or crowded, else in fours. */
INLINE void sum_strip(Lane *sums, const Strip *strip, int what)
{
    if (strip->span < SPAN)
        sum_lanes(sums, strip, what, 1, 1);
    else if (what == ALL_SHORT || (!strip->crowded && (what == FIRST || strip->n <= NEAR)))
        sum_lanes(sums, strip, what, 4, SPAN);
    else
        sum_lanes(sums, strip, what, 1, SPAN);
}

/* Sum k of the observations in register i. */
INLINE void values_of_register(double *value, const Lane *sums, int k, int i)
{
    for (int p = 0; p < PARTS; p++) {
        const Total *total = &sums->of[k][i * PARTS + p];
#if T_SIZE == 8
        *(D *)(value + p * DW) = total->sum + total->rest;
#else
        *(D *)(value + p * DW) = total->sum;
#endif
    }
}

/* The statistics; mean and rstd may be NULL, sums is room for them on the way. False if an observation is not finite or near
   the limits of its type. */
static NOINLINE int stats_of_strip(Strip *strip, Lane *sums, View *vx, double *mean, double *rstd)
{
    const ptrdiff_t n = strip->n;
    const double far = is_short(n) ? FAR_SHORT : FAR;
    if (is_short(n)) {
        fill(strip->center, strip->m, 0);
        sum_strip(sums, strip, ALL_SHORT);
    } else {
        sum_strip(sums, strip, FIRST);
        for (int i = 0; i < strip->registers; i++) {
            double first[W];
            values_of_register(first, sums, 0, i);
            for (int l = 0; l < W; l += DW)
                store_narrow(strip->center + place_of(strip, i) + l,
                             *(D *)(first + l) / (double)(n < CENTER ? n : CENTER));
        }
        sum_strip(sums, strip, ALL);
    }
    for (int i = 0; i < strip->registers; i++) {
        const int at = place_of(strip, i);
        double d[W], d2[W];
        Stats s;
        values_of_register(d, sums, 0, i);
        values_of_register(d2, sums, 1, i);
        if (settle(&s, d, d2, strip->center + at, W, n, vx->job->epsilon, far, 0) != SETTLED)
            for (int l = 0; l < W; l++) {
                s.exponent[l] = 0;
                if (s.state[l] != SETTLED)
                    settle_slowly(&s, l, vx, (const char *)(strip->x + at + l));
                if (s.exponent[l] || isnan(s.rstd[l]))
                    return 0;
            }
        store(strip->k + at, load(s.k));
        store(strip->r + at, load(s.r));
        store(strip->c + at, load(s.c));
        if (mean) {
            memcpy(mean + at, s.mean, W * sizeof(double));
            memcpy(rstd + at, s.rstd, W * sizeof(double));
        }
    }
    return 1;
}
