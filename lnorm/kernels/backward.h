/* With x̂ = (x - μ)·rstd and g = γ·dy:

       dx = rstd·(g - mean(g) - x̂·mean(g·x̂))        dγ = Σ dy·x̂        dβ = Σ dy        (sums over observations)

   the derivative of the formula in forward.h; also Xu et al., Understanding and Improving Layer Normalization, 2019,
   arXiv:1911.07013, eq. 5. The sums of a row are taken with x̃ = (x - K)·rstd for K = μ rounded to T, so that
   x̂ = x̃ - mean(x̃): what the rounding of μ lost comes back, also that of a stored mean. */

INLINE void add_terms(V *sum_x, V *sum_g, V *sum_gx, const T *x, const T *dy, const T *scale, V k, V r, int rows)
{
    for (int u = 0; u < U; u++) {
        V a[4], g[4], b[4];
        for (int i = 0; i < rows; i++) {
            const int l = i * LANES + u * W;
            a[i] = (load(x + l) - k) * r;
            g[i] = load(scale + l) * load(dy + l);
            b[i] = g[i] * a[i];
        }
        sum_x[u] += SUM_OF(V, a, rows);
        sum_g[u] += SUM_OF(V, g, rows);
        sum_gx[u] += SUM_OF(V, b, rows);
    }
}

/* The mean and rstd of a row: those given, where they are finite; else from the row. */
INLINE void standardize(const lnorm_job *job, ptrdiff_t i, View *vx, const char *x, lnorm_row *row)
{
    if (job->mean && isfinite(job->rstd[i])) {
        row->exponent = 0;
        if (job->rstd[i] != 0 && !(job->rstd[i] > SAFE_SQUARE && job->rstd[i] < 1 / SAFE_SQUARE))
            frexp(job->rstd[i], &row->exponent);
        row->center = (T)ldexp(job->mean[i], row->exponent);
        row->rstd = (T)ldexp(job->rstd[i], -row->exponent);
    } else {
        Stats s;
        stats_of(&s, vx, x);
        row->exponent = s.exponent[0];
        row->center = s.k[0];
        row->rstd = s.r[0];
    }
}

static void backward_sums(const lnorm_job *job, ptrdiff_t first, ptrdiff_t last, lnorm_row *row)
{
    const ptrdiff_t n = job->n;
    lnorm_walk walk;
    View vx, vscale, vdy;
    view_of(&vx, job, LNORM_X);
    view_of(&vscale, job, LNORM_SCALE);
    view_of(&vdy, job, LNORM_DY);
    lnorm_walk_to(&walk, job, first);
    for (ptrdiff_t i = first; i < last; i++, row++, lnorm_walk_on(&walk, 1)) {
        standardize(job, i, &vx, walk.at[LNORM_X], row);
        const V k = SPLAT((T)row->center), r = SPLAT((T)row->rstd);
        Sum sx, sg, sgx;
        ptrdiff_t b = 0;
        do {
            const ptrdiff_t m = n - b < LNORM_BLOCK ? n - b : LNORM_BLOCK;
            const T *x = get(&vx, walk.at[LNORM_X], b, m, row->exponent);
            const T *dy = get(&vdy, walk.at[LNORM_DY], b, m, 0);
            const T *scale = get(&vscale, walk.at[LNORM_SCALE], b, m, 0);
            V tx[U] = {0}, tg[U] = {0}, tgx[U] = {0};
            ptrdiff_t j = 0;
            for (; j + 4 * LANES <= m; j += 4 * LANES)
                add_terms(tx, tg, tgx, x + j, dy + j, scale + j, k, r, 4);
            for (; j + LANES <= m; j += LANES)
                add_terms(tx, tg, tgx, x + j, dy + j, scale + j, k, r, 1);
            if (j < m) {
                T x_end[LANES], dy_end[LANES], scale_end[LANES];
                for (int u = 0; u < U; u++) {
                    store(x_end + u * W, load_end(x + j, u, m - j, (T)row->center));
                    store(dy_end + u * W, load_end(dy + j, u, m - j, 0));
                    store(scale_end + u * W, load_end(scale + j, u, m - j, 0));
                }
                add_terms(tx, tg, tgx, x_end, dy_end, scale_end, k, r, 1);
            }
            add_block(&sx, tx, b == 0);
            add_block(&sg, tg, b == 0);
            add_block(&sgx, tgx, b == 0);
            b += LNORM_BLOCK;
        } while (b < n);
        double value_x[ROWS], value_g[ROWS], value_gx[ROWS];
        Total total_x = total_of(&sx), total_g = total_of(&sg), total_gx = total_of(&sgx);
        values_of(value_x, &total_x, 1);
        values_of(value_g, &total_g, 1);
        values_of(value_gx, &total_gx, 1);
        row->mean_x = *value_x / (double)n;
        row->mean_g = *value_g / (double)n;
        row->mean_gx = *value_gx / (double)n - row->mean_x * row->mean_g;
    }
}

/* dy·x̂ and dy of up to four rows are added in T, then to the columns' sums in double precision. */
INLINE void add_wide(double *sum, V v)
{
    D wide[PARTS];
    widen(wide, v);
    for (int i = 0; i < PARTS; i++)
        *(D *)(sum + i * DW) += wide[i];
}

/* A block of a row: where its elements are, and what the sums over the row gave. */
typedef struct {
    T *dx;
    const T *x, *dy;
    T k, r, c, mean_g, mean_gx;
} Line;

/* At column j of each of the rows: dx, and dy·x̂ and dy for the columns' sums. `type` is V, or T for single elements. */
#define SWEEP(type, LOAD, STORE, line, rows, j, scale)                                            \
    for (int i = 0; i < rows; i++) {                                                              \
        const type dy = LOAD(line[i].dy + j), xhat = XHAT(LOAD(line[i].x + j), k[i], r[i], c[i]); \
        STORE(line[i].dx + j, (scale * dy - mean_g[i] - xhat * mean_gx[i]) * r[i]);               \
        dyx[i] = dy * xhat;                                                                       \
        dys[i] = dy;                                                                              \
    }
#define ELEMENT(p) (*(p))
#define SET_ELEMENT(p, v) (*(p) = (v))

INLINE void sweep_elements(const Line *line, int rows, const T *scale, ptrdiff_t begin, ptrdiff_t end, double *dscale,
                           double *doffset)
{
    T k[4], r[4], c[4], mean_g[4], mean_gx[4], dyx[4], dys[4];
    for (int i = 0; i < rows; i++) {
        k[i] = line[i].k;
        r[i] = line[i].r;
        c[i] = line[i].c;
        mean_g[i] = line[i].mean_g;
        mean_gx[i] = line[i].mean_gx;
    }
    for (ptrdiff_t j = begin; j < end; j++) {
        SWEEP(T, ELEMENT, SET_ELEMENT, line, rows, j, scale[j])
        if (dscale) {
            dscale[j] += SUM_OF(T, dyx, rows);
            doffset[j] += SUM_OF(T, dys, rows);
        }
    }
}

/* m columns of one or four rows. Streamed: whole lines of dx are written around the caches. */
INLINE void sweep_rows(const Line *line, int rows, const T *scale, ptrdiff_t m, double *dscale, double *doffset,
                       int streamed)
{
    V k[4], r[4], c[4], mean_g[4], mean_gx[4], dyx[4], dys[4];
    ptrdiff_t begin = 0, end = m / W * W;
    if (streamed) {
        begin = until_aligned(line[0].dx, LINE);
        begin = begin < m ? begin : m;
        end = begin + (m - begin) / (LINE / T_SIZE) * (LINE / T_SIZE);
    }
    for (int i = 0; i < rows; i++) {
        k[i] = SPLAT(line[i].k);
        r[i] = SPLAT(line[i].r);
        c[i] = SPLAT(line[i].c);
        mean_g[i] = SPLAT(line[i].mean_g);
        mean_gx[i] = SPLAT(line[i].mean_gx);
    }
    sweep_elements(line, rows, scale, 0, begin, dscale, doffset);
    for (ptrdiff_t j = begin; j < end; j += W) {
        const V s = load(scale + j);
        if (streamed) {
            SWEEP(V, load, stream_to, line, rows, j, s)
        } else {
            SWEEP(V, load, store, line, rows, j, s)
        }
        if (dscale) {
            add_wide(dscale + j, SUM_OF(V, dyx, rows));
            add_wide(doffset + j, SUM_OF(V, dys, rows));
        }
    }
    sweep_elements(line, rows, scale, end, m, dscale, doffset);
}

static void backward_sweep(const lnorm_job *job, ptrdiff_t first, ptrdiff_t last, const lnorm_row *row, ptrdiff_t begin,
                           ptrdiff_t end, double *dscale, double *doffset)
{
    lnorm_walk walk;
    View vx[4], vdy[4], vdx[4], vscale;
    view_of(&vscale, job, LNORM_SCALE);
    for (int i = 0; i < 4; i++) {
        view_of(&vx[i], job, LNORM_X);
        view_of(&vdy[i], job, LNORM_DY);
        view_of(&vdx[i], job, LNORM_DX);
    }
    lnorm_walk_to(&walk, job, first);
    while (first < last) {
        const int rows = last - first < 4 ? 1 : 4;
        char *x[4], *dy[4], *dx[4], *const shared = walk.at[LNORM_SCALE];
        ptrdiff_t width = block_width(job);
        for (int i = 0; i < rows; i++, lnorm_walk_on(&walk, 1)) {
            width = row[i].exponent == 0 ? width : LNORM_BLOCK;
            x[i] = walk.at[LNORM_X];
            dy[i] = walk.at[LNORM_DY];
            dx[i] = walk.at[LNORM_DX];
        }
        for (ptrdiff_t j = begin; j < end; j += width) {
            const ptrdiff_t m = end - j < width ? end - j : width;
            const T *scale = get(&vscale, shared, j, m, 0);
            double *ds = dscale ? dscale + (j - begin) : NULL, *db = dscale ? doffset + (j - begin) : NULL;
            Line line[4];
            int streamed = job->stream;
            for (int i = 0; i < rows; i++) {
                line[i].dx = place(&vdx[i], dx[i], j, row[i].exponent);
                line[i].x = get(&vx[i], x[i], j, m, row[i].exponent);
                line[i].dy = get(&vdy[i], dy[i], j, m, 0);
                line[i].k = (T)row[i].center;
                line[i].r = (T)row[i].rstd;
                line[i].c = (T)row[i].mean_x;
                line[i].mean_g = (T)row[i].mean_g;
                line[i].mean_gx = (T)row[i].mean_gx;
                streamed = streamed && until_aligned(line[i].dx, LINE) == until_aligned(line[0].dx, LINE);
            }
            if (rows == 1)
                sweep_rows(line, 1, scale, m, ds, db, 0);
            else if (streamed)
                sweep_rows(line, 4, scale, m, ds, db, 1);
            else
                sweep_rows(line, 4, scale, m, ds, db, 0);
            for (int i = 0; i < rows; i++) {
                if (!isfinite(row[i].rstd + row[i].mean_g + row[i].mean_gx))
                    for (ptrdiff_t l = 0; l < m; l++)
                        line[i].dx[l] = (T)NAN;
                put(&vdx[i], dx[i], j, m, row[i].exponent);
            }
        }
        first += rows;
        row += rows;
    }
    FENCE(job->stream);
}
