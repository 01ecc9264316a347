/* With x̂ = (x - μ)·rstd and g = γ·dy:

       dx = rstd·(g - mean(g) - x̂·mean(g·x̂))        dγ = Σ dy·x̂        dβ = Σ dy        (sums over observations)

   the derivative of the formula in forward.h; also Xu et al., Understanding and Improving Layer Normalization, 2019,
   arXiv:1911.07013, eq. 5. The sums of a row are taken with x̃ = (x - K)·rstd for K = μ rounded to T, so that
   x̂ = x̃ - mean(x̃): what the rounding of μ lost comes back, also that of a stored mean. */

#define DX(g, xhat, r, mean_g, mean_gx) (((g) - (mean_g) - (xhat) * (mean_gx)) * (r))

/* Columns of a row: where its elements are, and what the sums over the row gave. */
typedef struct {
    T *dx;
    const T *x, *dy;
    T k, r, c, mean_g, mean_gx;
} Line;

/* What the sums gave, rounded to T. */
INLINE void know(Line *line, const lnorm_row *row)
{
    line->k = (T)row->center;
    line->r = (T)row->rstd;
    line->c = (T)row->mean_x;
    line->mean_g = (T)row->mean_g;
    line->mean_gx = (T)row->mean_gx;
}

/* What is left of dx of a row, in whole lines, while the next rows are summed; see pending.h. */
typedef struct {
    Line line;
    const T *scale;
    ptrdiff_t left, scale_step; /* elements; the step 1, or 0 where one block serves for all */
} PendingDx;

/* m elements of it. */
INLINE void write_dx(PendingDx *row, int m, int streamed)
{
    const V k = SPLAT(row->line.k), r = SPLAT(row->line.r), c = SPLAT(row->line.c);
    const V mean_g = SPLAT(row->line.mean_g), mean_gx = SPLAT(row->line.mean_gx);
    V x[2 * NARROW / W], dy[2 * NARROW / W];
    UNROLL for (int l = 0; l < m; l += W)
    {
        x[l / W] = load(row->line.x + l);
        dy[l / W] = load(row->line.dy + l);
    }
    UNROLL for (int l = 0; l < m; l += W)
    {
        const V dx = DX(load(row->scale + l) * dy[l / W], XHAT(x[l / W], k, r, c), r, mean_g, mean_gx);
        if (streamed)
            stream_to(row->line.dx + l, dx);
        else
            store(row->line.dx + l, dx);
    }
    row->line.x += m;
    row->line.dy += m;
    row->line.dx += m;
    row->scale += m * row->scale_step;
    row->left -= m;
}

/* As much of it as is summed at a time; and the rest. */
INLINE void write_some_dx(PendingDx *row)
{
    PendingDx at = *row;
    for (ptrdiff_t m = 0; m < 4 * LANES && at.left >= 2 * NARROW; m += 2 * NARROW)
        write_dx(&at, 2 * NARROW, 1);
    *row = at;
}

INLINE void write_rest_dx(PendingDx *row)
{
    while (row->left >= 2 * NARROW)
        write_dx(row, 2 * NARROW, 1);
    while (row->left)
        write_dx(row, NARROW, 1);
}

INLINE void add_terms(V *sum_x, V *sum_g, V *sum_gx, const T *x, const T *dy, const T *scale, V k, V r, int rows)
{
    V vx[U][4], vdy[U][4];
    for (int l = 0; l < rows * LANES && IN_ORDER; l += W) {
        vx[l % LANES / W][l / LANES] = load_in_order(x + l);
        vdy[l % LANES / W][l / LANES] = load_in_order(dy + l);
    }
    for (int u = 0; u < U; u++) {
        V a[4], g[4], b[4];
        for (int i = 0; i < rows; i++) {
            const int l = i * LANES + u * W;
            a[i] = ((IN_ORDER ? vx[u][i] : load(x + l)) - k) * r;
            g[i] = load(scale + l) * (IN_ORDER ? vdy[u][i] : load(dy + l));
            b[i] = g[i] * a[i];
        }
        sum_x[u] += SUM_OF(V, a, rows);
        sum_g[u] += SUM_OF(V, g, rows);
        sum_gx[u] += SUM_OF(V, b, rows);
    }
}

/* The mean and rstd of a row that are not given, not finite, or near the limits of their type. */
static NOINLINE void standardize_slowly(const lnorm_job *job, ptrdiff_t i, View *vx, const char *x, lnorm_row *row)
{
    row->exponent = 0;
    if (job->mean && isfinite(job->rstd[i])) {
        if (job->rstd[i] != 0)
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

/* The mean and rstd of a row: those given, where they are finite; else from the row. */
INLINE void standardize(const lnorm_job *job, ptrdiff_t i, View *vx, const char *x, lnorm_row *row)
{
    if (job->mean && job->rstd[i] > SAFE_SQUARE && job->rstd[i] < 1 / SAFE_SQUARE) {
        row->exponent = 0;
        row->center = (T)job->mean[i];
        row->rstd = (T)job->rstd[i];
    } else
        standardize_slowly(job, i, vx, x, row);
}

/* The sums of m elements of a row, lane by lane; meanwhile, what is pending of a row before, if any, is written. */
INLINE void add_row(V *sum_x, V *sum_g, V *sum_gx, const T *x, const T *dy, const T *scale, ptrdiff_t m, T center,
                    T rstd, PendingDx *pending)
{
    const V k = SPLAT(center), r = SPLAT(rstd);
    ptrdiff_t j = 0;
    UNROLL for (int u = 0; u < U; u++) sum_x[u] = sum_g[u] = sum_gx[u] = SPLAT((T)0);
    for (; j + 4 * LANES <= m; j += 4 * LANES) {
        if (pending) {
            fetch_pages(x + j, 4 * LANES * T_SIZE);
            fetch_pages(dy + j, 4 * LANES * T_SIZE);
        }
        add_terms(sum_x, sum_g, sum_gx, x + j, dy + j, scale + j, k, r, 4);
        if (pending)
            write_some_dx(pending);
    }
    for (; j + LANES <= m; j += LANES)
        add_terms(sum_x, sum_g, sum_gx, x + j, dy + j, scale + j, k, r, 1);
    if (j < m) {
        T x_end[LANES], dy_end[LANES], scale_end[LANES];
        for (int u = 0; u < U; u++) {
            store(x_end + u * W, load_end(x + j, u, m - j, center));
            store(dy_end + u * W, load_end(dy + j, u, m - j, 0));
            store(scale_end + u * W, load_end(scale + j, u, m - j, 0));
        }
        add_terms(sum_x, sum_g, sum_gx, x_end, dy_end, scale_end, k, r, 1);
    }
}

INLINE Total total_of_block(const V *lanes)
{
    Sum sum;
    add_block(&sum, lanes, 1);
    return total_of(&sum);
}

INLINE void set_means(lnorm_row *row, double sum_x, double sum_g, double sum_gx, double share)
{
    row->mean_x = sum_x * share;
    row->mean_g = sum_g * share;
    row->mean_gx = sum_gx * share - row->mean_x * row->mean_g;
}

/* What the sums of one row or of four come to. */
INLINE void mean_of_rows(lnorm_row *row, const Total *total_x, const Total *total_g, const Total *total_gx, ptrdiff_t n,
                         int rows)
{
    const double share = 1.0 / (double)n;
    double sum_x[ROWS], sum_g[ROWS], sum_gx[ROWS];
    values_of(sum_x, total_x, rows);
    values_of(sum_g, total_g, rows);
    values_of(sum_gx, total_gx, rows);
    for (int i = 0; i < rows; i++)
        set_means(&row[i], sum_x[i], sum_g[i], sum_gx[i], share);
}

/* Whether elements of all rows stand side by side. */
INLINE int is_plain(const lnorm_job *job)
{
    return job->op[LNORM_X].contiguous && job->op[LNORM_DY].contiguous && job->op[LNORM_DX].contiguous &&
           (job->op[LNORM_SCALE].contiguous || job->op[LNORM_SCALE].block);
}

/* Whether rows are swept four at a time: they and their elements stand side by side in the same way in all operands, and
   streamed, they are short, and each begins at the same place of a line. Longer ones are written row by row. */
INLINE int lie_together(const lnorm_job *job)
{
    const int last = job->outer_ndim - 1;
    const ptrdiff_t step = last < 0 ? 0 : job->op[LNORM_DX].outer[last];
    if (job->stream && (step % LINE || job->n > SHORT))
        return 0;
    return last >= 0 && is_plain(job) && job->op[LNORM_X].outer[last] == step && job->op[LNORM_DY].outer[last] == step;
}

/* Bytes to the rows that are summed after these, where those are short and far: x is fetched while these are summed, dy while
   they are swept together. All at once is more than a processor keeps on the way. */
INLINE ptrdiff_t to_next_batch(const lnorm_job *job, ptrdiff_t rows)
{
    const int fetched = lie_together(job) && job->n <= SHORT && job->size > DISTANT;
    return fetched ? rows * job->op[LNORM_X].outer[job->outer_ndim - 1] : 0;
}

/* The sums of a row in blocks, wherever its elements are. */
INLINE void total_of_row(Total *total_x, Total *total_g, Total *total_gx, View *vx, View *vscale, View *vdy,
                         const char *x, const char *scale, const char *dy, const lnorm_row *row, ptrdiff_t ahead,
                         PendingDx *pending)
{
    const ptrdiff_t n = vx->job->n;
    Sum sx, sg, sgx;
    ptrdiff_t b = 0;
    do {
        const ptrdiff_t m = n - b < LNORM_BLOCK ? n - b : LNORM_BLOCK;
        V tx[U], tg[U], tgx[U];
        if (ahead)
            fetch((const T *)(x + ahead) + b, m, vx->job->in_turn);
        add_row(tx, tg, tgx, get(vx, x, b, m, row->exponent), get(vdy, dy, b, m, 0), get(vscale, scale, b, m, 0), m,
                (T)row->center, (T)row->rstd, pending);
        if (b == 0) {
            add_block(&sx, tx, 1);
            add_block(&sg, tg, 1);
            add_block(&sgx, tgx, 1);
        } else {
            add_block(&sx, tx, 0);
            add_block(&sg, tg, 0);
            add_block(&sgx, tgx, 0);
        }
        b += LNORM_BLOCK;
    } while (b < n);
    *total_x = total_of(&sx);
    *total_g = total_of(&sg);
    *total_gx = total_of(&sgx);
}

/* The sums of one row or of some, whose trees are folded together. Those of plain rows of one block go straight from
   registers to their trees. */
INLINE void sum_rows(const lnorm_walk *walk, ptrdiff_t first, View *vx, View *vscale, View *vdy, lnorm_row *row,
                     int rows, int brief, ptrdiff_t ahead)
{
    const lnorm_job *job = walk->job;
    const int last = job->outer_ndim - 1;
    Total total_x[4], total_g[4], total_gx[4];
    for (int i = 0; i < rows; i++) {
        const char *x = walk->at[LNORM_X] + (i ? i * job->op[LNORM_X].outer[last] : 0);
        const char *dy = walk->at[LNORM_DY] + (i ? i * job->op[LNORM_DY].outer[last] : 0);
        const char *scale = walk->at[LNORM_SCALE] + (i ? i * job->op[LNORM_SCALE].outer[last] : 0);
        standardize(job, first + i, vx, x, &row[i]);
        if (brief) {
            V tx[U], tg[U], tgx[U];
            if (ahead)
                fetch((const T *)(x + ahead), job->n, job->in_turn);
            add_row(tx, tg, tgx, get(vx, x, 0, job->n, row[i].exponent), (const T *)dy, (const T *)scale, job->n,
                    (T)row[i].center, (T)row[i].rstd, NULL);
            total_x[i] = total_of_block(tx);
            total_g[i] = total_of_block(tg);
            total_gx[i] = total_of_block(tgx);
        } else
            total_of_row(&total_x[i], &total_g[i], &total_gx[i], vx, vscale, vdy, x, scale, dy, &row[i], ahead, NULL);
    }
    mean_of_rows(row, total_x, total_g, total_gx, job->n, rows);
}

static NOINLINE void sum_brief_rows(const lnorm_walk *walk, ptrdiff_t first, View *vx, View *vscale, View *vdy,
                                    lnorm_row *row, ptrdiff_t ahead)
{
    sum_rows(walk, first, vx, vscale, vdy, row, 4, 1, ahead);
}

static NOINLINE void sum_four_rows(const lnorm_walk *walk, ptrdiff_t first, View *vx, View *vscale, View *vdy,
                                   lnorm_row *row, ptrdiff_t ahead)
{
    sum_rows(walk, first, vx, vscale, vdy, row, 4, 0, ahead);
}

static NOINLINE void sum_one_row(const lnorm_walk *walk, ptrdiff_t first, View *vx, View *vscale, View *vdy,
                                 lnorm_row *row)
{
    sum_rows(walk, first, vx, vscale, vdy, row, 1, 0, 0);
}

/* The sums of a strip. False if one of its observations is not finite or near the limits of its type. */
static NOINLINE int sum_strip_of_rows(const lnorm_walk *walk, ptrdiff_t first, View *vx, lnorm_row *row, int m)
{
    const lnorm_job *job = walk->job;
    const double share = 1.0 / (double)job->n;
    Lane sums[WAITING];
    Strip strip;
    strip_of(&strip, walk, m);
    if (!job->mean) {
        if (!stats_of_strip(&strip, sums, vx, NULL, NULL))
            return 0;
        for (int i = 0; i < m; i++)
            row[i] = (lnorm_row){.center = strip.k[i], .rstd = strip.r[i]};
    }
    for (int i = 0; i < m; i++) {
        if (job->mean)
            standardize(job, first + i, vx, walk->at[LNORM_X] + i * T_SIZE, &row[i]);
        if (row[i].exponent || !isfinite(row[i].rstd))
            return 0;
        strip.center[i] = (T)row[i].center;
        strip.r[i] = (T)row[i].rstd;
    }
    sum_strip(sums, &strip, BACKWARD);
    for (int i = 0; i < strip.registers; i++) {
        double x[W], g[W], gx[W];
        lnorm_row *own = row + place_of(&strip, i);
        values_of_register(x, sums, 0, i);
        values_of_register(g, sums, 1, i);
        values_of_register(gx, sums, 2, i);
        for (int l = 0; l < W; l++)
            set_means(&own[l], x[l], g[l], gx[l], share);
    }
    return 1;
}

static void backward_sums(const lnorm_job *job, ptrdiff_t first, ptrdiff_t last, lnorm_row *row)
{
    lnorm_walk walk;
    View vx, vscale, vdy;
    view_of(&vx, job, LNORM_X);
    view_of(&vscale, job, LNORM_SCALE);
    view_of(&vdy, job, LNORM_DY);
    lnorm_walk_to(&walk, job, first);
    if (job->columns && last - first >= NARROW && sum_strip_of_rows(&walk, first, &vx, row, (int)(last - first)))
        return;
    const int brief = is_plain(job) && job->n <= LNORM_BLOCK;
    const ptrdiff_t ahead = to_next_batch(job, last - first);
    /* the lines that they share with others are written through the caches */
    if (job->stream && lie_together(job)) {
        PREFETCH_TO_WRITE(walk.at[LNORM_DX]);
        PREFETCH_TO_WRITE(walk.at[LNORM_DX] + (last - first) * job->op[LNORM_DX].outer[job->outer_ndim - 1]);
    }
    for (int m; first < last; first += m, row += m) {
        m = last - first >= 4 && lnorm_walk_left(&walk) >= 4 ? 4 : 1;
        if (m == 1)
            sum_one_row(&walk, first, &vx, &vscale, &vdy, row);
        else if (brief)
            sum_brief_rows(&walk, first, &vx, &vscale, &vdy, row, ahead);
        else
            sum_four_rows(&walk, first, &vx, &vscale, &vdy, row, ahead);
        lnorm_walk_on(&walk, m);
    }
}

/* The sums of dy·x̂ and dy over some rows: in T, then added to the columns' sums in double precision. */
INLINE void add_wide(double *sum, V v)
{
    D wide[PARTS];
    widen(wide, v);
    for (int i = 0; i < PARTS; i++)
        *(D *)(sum + i * DW) += wide[i];
}

INLINE void add_gradients(const Line *line, int rows, ptrdiff_t m, double *dscale, double *doffset)
{
    ptrdiff_t j = 0;
    for (; j + W <= m; j += W) {
        V dys = load(line[0].dy + j);
        V dyx = dys * XHAT(load(line[0].x + j), SPLAT(line[0].k), SPLAT(line[0].r), SPLAT(line[0].c));
        for (int i = 1; i < rows; i++) {
            const V dy = load(line[i].dy + j);
            dyx += dy * XHAT(load(line[i].x + j), SPLAT(line[i].k), SPLAT(line[i].r), SPLAT(line[i].c));
            dys += dy;
        }
        add_wide(dscale + j, dyx);
        add_wide(doffset + j, dys);
    }
    for (; j < m; j++) {
        T dys = line[0].dy[j], dyx = dys * XHAT(line[0].x[j], line[0].k, line[0].r, line[0].c);
        for (int i = 1; i < rows; i++) {
            dyx += line[i].dy[j] * XHAT(line[i].x[j], line[i].k, line[i].r, line[i].c);
            dys += line[i].dy[j];
        }
        dscale[j] += dyx;
        doffset[j] += dys;
    }
}

INLINE void sweep_elements(const Line *line, const T *scale, ptrdiff_t begin, ptrdiff_t end)
{
    for (ptrdiff_t j = begin; j < end; j++)
        line->dx[j] = DX(scale[j] * line->dy[j], XHAT(line->x[j], line->k, line->r, line->c), line->r, line->mean_g,
                         line->mean_gx);
}

/* The step from one register of columns to the next, so that no load is a little behind of the last stores; see downwards. */
INLINE ptrdiff_t direction(const T *x, const T *dy, const T *dx)
{
    const uintptr_t up = behind(x, dx) < behind(dy, dx) ? behind(x, dx) : behind(dy, dx);
    const uintptr_t down = behind(dx, x) < behind(dx, dy) ? behind(dx, x) : behind(dx, dy);
    return up < down ? -W : W;
}

/* m columns of dx. Between the ends they are written in whole lines; streamed, around the caches, and a line that is shared
   with another row when all of it is known. The ends are computed before anything is written, because dx may be x or dy. */
INLINE void sweep_row(const Line *line, const T *scale, ptrdiff_t m, Seam *seam, int streamed)
{
    const V k = SPLAT(line->k), r = SPLAT(line->r), c = SPLAT(line->c);
    const V mean_g = SPLAT(line->mean_g), mean_gx = SPLAT(line->mean_gx);
    const ptrdiff_t begin = streamed || m >= LNORM_BLOCK ? until_aligned(line->dx, LINE) : 0;
    const ptrdiff_t rest = (m - begin) % NARROW, end = m - rest;
    const ptrdiff_t step = direction(line->x, line->dy, line->dx);
    T head[NARROW] = {0}, tail[NARROW] = {0};
    if (m < NARROW) {
        sweep_elements(line, scale, 0, m);
        return;
    }
#define OUT(j) DX(load(scale + (j)) * load(line->dy + (j)), XHAT(load(line->x + (j)), k, r, c), r, mean_g, mean_gx)
    for (int l = 0; l < NARROW && begin; l += W)
        store(head + l, OUT(l));
    for (int l = 0; l < NARROW && rest; l += W)
        store(tail + l, OUT(m - NARROW + l));
    if (streamed) {
        memcpy(seam->line + NARROW, head, sizeof head);
        begin_at_seam(seam, line->dx, begin);
        memcpy(seam->line, tail, sizeof tail);
        end_at_seam(seam, line->dx + m, rest);
        for (ptrdiff_t j = step < 0 ? end - W : begin; begin <= j && j < end; j += step)
            stream_to(line->dx + j, OUT(j));
        return;
    }
    for (ptrdiff_t j = step < 0 ? end - W : begin; begin <= j && j < end; j += step)
        store(line->dx + j, OUT(j));
    if (begin)
        memcpy(line->dx, head, sizeof head);
    if (rest)
        memcpy(line->dx + m - NARROW, tail, sizeof tail);
#undef OUT
}

/* Four rows, which are swept together: where they are, so many elements apart in all operands, and what their sums gave. */
typedef struct {
    const T *x, *dy, *scale;
    T *dx;
    ptrdiff_t step;
    int later; /* what is fetched is read */
    V k[4], r[4], c[4], mean_g[4], mean_gx[4];
} Four;

/* One register of dx of each, from column j on, and what they add to the gradients. */
INLINE void dx_of_four(V *dx, V *dyx, V *dys, const Four *four, ptrdiff_t j)
{
    const V g = load(four->scale + j);
    UNROLL for (int i = 0; i < 4; i++)
    {
        const V dy = load(four->dy + i * four->step + j);
        const V xhat = XHAT(load(four->x + i * four->step + j), four->k[i], four->r[i], four->c[i]);
        dx[i] = DX(g * dy, xhat, four->r[i], four->mean_g[i], four->mean_gx[i]);
        *dyx = i ? (V)(*dyx + dy * xhat) : (V)(dy * xhat);
        *dys = i ? (V)(*dys + dy) : dy;
    }
}

/* Of that register, the lanes from <= l < to alone. */
INLINE void sweep_part(const Four *four, ptrdiff_t j, int from, int to, double *dscale, double *doffset)
{
    V dx[4], dyx, dys;
    dx_of_four(dx, &dyx, &dys, four, j);
    for (int i = 0; i < 4; i++)
        store_part(four->dx + i * four->step + j, dx[i], from, to);
    add_wide(dscale + j, only_lanes(dyx, from, to));
    add_wide(doffset + j, only_lanes(dys, from, to));
}

/* m columns of four rows up to the first whole line, and from the last one on. Row i begins at seam i and ends at the next. */
INLINE void sweep_seams(const Four *four, ptrdiff_t m, ptrdiff_t begin, ptrdiff_t rest, Seam *seams, double *dscale,
                        double *doffset)
{
    V dx[4], dyx, dys;
    for (ptrdiff_t j = 0; j < begin; j += W) {
        const int own = begin - j < W ? (int)(begin - j) : W;
        dx_of_four(dx, &dyx, &dys, four, j);
        for (int i = 0; i < 4; i++)
            store(seams[i].line + NARROW + j, dx[i]);
        add_wide(dscale + j, only_lanes(dyx, 0, own));
        add_wide(doffset + j, only_lanes(dys, 0, own));
    }
    for (ptrdiff_t l = NARROW - W; l > NARROW - rest - W; l -= W) {
        const ptrdiff_t j = m - NARROW + l;
        const int other = l < NARROW - rest ? (int)(NARROW - rest - l) : 0;
        dx_of_four(dx, &dyx, &dys, four, j);
        for (int i = 0; i < 4; i++)
            store(seams[i + 1].line + l, dx[i]);
        add_wide(dscale + j, only_lanes(dyx, other, W));
        add_wide(doffset + j, only_lanes(dys, other, W));
    }
}

/* Those columns to memory, now that all of the four rows is known. */
INLINE void write_seams(const Four *four, ptrdiff_t m, ptrdiff_t begin, ptrdiff_t rest, Seam *seams)
{
    UNROLL for (int i = 0; i < 4; i++)
    {
        T *const row = four->dx + i * four->step;
        begin_at_seam(&seams[i], row, begin);
        end_at_seam(&seams[i + 1], row + m, rest);
    }
    memcpy(seams[0].line, seams[4].line, NARROW * T_SIZE);
    end_at_seam(&seams[0], seams[4].next, rest);
}

/* At least a line of columns of four rows: dx, and what they add to the gradients. dx is written in whole registers between the
   ends; streamed, in whole lines, and all rows begin at the same place of one. What is ahead of dy, in bytes unless 0, is
   fetched. */
INLINE void sweep_together(const Four *four, ptrdiff_t m, double *dscale, double *doffset, ptrdiff_t ahead, Seam *seams,
                           int streamed)
{
    const int line = streamed ? NARROW : W;
    const ptrdiff_t begin = streamed || m >= LNORM_BLOCK ? until_aligned(four->dx, line * T_SIZE) : 0;
    const ptrdiff_t end = begin + (m - begin) / line * line, step = direction(four->x, four->dy, four->dx);
    if (streamed)
        sweep_seams(four, m, begin, m - end, seams, dscale, doffset);
    for (ptrdiff_t j = 0; j < begin && !streamed; j += W)
        sweep_part(four, j, 0, begin - j < W ? (int)(begin - j) : W, dscale, doffset);
    for (ptrdiff_t j = m - W; j > end - W && !streamed; j -= W)
        sweep_part(four, j, end > j ? (int)(end - j) : 0, W, dscale, doffset);
    for (ptrdiff_t j = step < 0 ? end - W : begin; begin <= j && j < end; j += step) {
        V dx[4], dyx, dys;
        if (ahead && (j - begin) % (2 * NARROW) < W) /* two lines of a row at a time: memory likes pairs */
            for (int i = 0; i < 4; i++)
                fetch((const T *)((const char *)(four->dy + i * four->step + j) + ahead), 2 * NARROW, four->later);
        dx_of_four(dx, &dyx, &dys, four, j);
        for (int i = 0; i < 4; i++)
            if (streamed)
                stream_to(four->dx + i * four->step + j, dx[i]);
            else
                store(four->dx + i * four->step + j, dx[i]);
        add_wide(dscale + j, dyx);
        add_wide(doffset + j, dys);
    }
    if (streamed)
        write_seams(four, m, begin, m - end, seams);
}

/* How many of the rows are swept together: fours, in none of which a row is special, to the end of the last outer dimension. */
INLINE ptrdiff_t rows_together(const lnorm_walk *walk, const lnorm_row *row, ptrdiff_t rows)
{
    const ptrdiff_t left = lnorm_walk_left(walk), most = rows < left ? rows : left;
    ptrdiff_t i = 0;
    while (i < most && row[i].exponent == 0 && isfinite(row[i].rstd + row[i].mean_g + row[i].mean_gx))
        i++;
    return i / 4 * 4;
}

INLINE void sweep_fours(const lnorm_walk *walk, const lnorm_row *row, ptrdiff_t rows, ptrdiff_t begin, ptrdiff_t end,
                        double *dscale, double *doffset, ptrdiff_t ahead, int streamed)
{
    const lnorm_job *job = walk->job;
    const ptrdiff_t width = block_width(job), step = job->op[LNORM_DX].outer[job->outer_ndim - 1] / T_SIZE;
    Seam seams[5];
    seams[0].open = 0;
    for (ptrdiff_t i = 0, m; i < rows; i += 4, row += 4) {
        Four four = {.step = step, .later = job->in_turn};
        for (int k = 0; k < 4; k++) {
            Line line;
            know(&line, &row[k]);
            four.k[k] = SPLAT(line.k);
            four.r[k] = SPLAT(line.r);
            four.c[k] = SPLAT(line.c);
            four.mean_g[k] = SPLAT(line.mean_g);
            four.mean_gx[k] = SPLAT(line.mean_gx);
        }
        for (ptrdiff_t j = begin; j < end; j += m) {
            m = end - j < width + NARROW ? end - j : width; /* at least a line */
            four.x = (const T *)walk->at[LNORM_X] + i * step + j;
            four.dy = (const T *)walk->at[LNORM_DY] + i * step + j;
            four.dx = (T *)walk->at[LNORM_DX] + i * step + j;
            four.scale = (const T *)walk->at[LNORM_SCALE] + (job->op[LNORM_SCALE].block ? 0 : j);
            sweep_together(&four, m, dscale + (j - begin), doffset + (j - begin), ahead, seams, streamed);
        }
    }
    close_seam(&seams[0]);
}

/* Observations first <= i < last, in fours; the walk goes along. */
static NOINLINE void sweep_rows(lnorm_walk *at, ptrdiff_t first, ptrdiff_t last, const lnorm_row *row, ptrdiff_t begin,
                                ptrdiff_t end, double *dscale, double *doffset)
{
    const lnorm_job *job = at->job;
    const int together = dscale && end - begin >= NARROW && lie_together(job);
    const ptrdiff_t ahead = to_next_batch(job, last - first);
    lnorm_walk walk = *at;
    View vx[4], vdy[4], vdx, vscale;
    Seam seam;
    seam.open = 0;
    view_of(&vscale, job, LNORM_SCALE);
    view_of(&vdx, job, LNORM_DX);
    for (int i = 0; i < 4; i++) {
        view_of(&vx[i], job, LNORM_X);
        view_of(&vdy[i], job, LNORM_DY);
    }
    for (ptrdiff_t rows; first < last; first += rows, row += rows) {
        const char *x[4], *dy[4], *scale = walk.at[LNORM_SCALE];
        char *dx[4];
        Line line[4];
        ptrdiff_t width = block_width(job), m;
        rows = together ? rows_together(&walk, row, last - first) : 0;
        if (rows) {
            if (job->stream)
                sweep_fours(&walk, row, rows, begin, end, dscale, doffset, ahead, 1);
            else
                sweep_fours(&walk, row, rows, begin, end, dscale, doffset, ahead, 0);
            lnorm_walk_on(&walk, rows);
            continue;
        }
        rows = last - first < 4 ? 1 : 4;
        for (int i = 0; i < rows; i++) {
            x[i] = walk.at[LNORM_X];
            dy[i] = walk.at[LNORM_DY];
            dx[i] = walk.at[LNORM_DX];
            know(&line[i], &row[i]);
            width = row[i].exponent == 0 ? width : LNORM_BLOCK;
            lnorm_walk_on(&walk, 1);
        }
        for (ptrdiff_t j = begin; j < end; j += m) {
            m = end - j < width ? end - j : width;
            const T *g = get(&vscale, scale, j, m, 0);
            for (int i = 0; i < rows; i++) {
                line[i].x = get(&vx[i], x[i], j, m, row[i].exponent);
                line[i].dy = get(&vdy[i], dy[i], j, m, 0);
                line[i].dx = place(&vdx, dx[i], j, row[i].exponent);
            }
            if (dscale && rows == 1)
                add_gradients(line, 1, m, dscale + (j - begin), doffset + (j - begin));
            else if (dscale)
                add_gradients(line, 4, m, dscale + (j - begin), doffset + (j - begin));
            for (int i = 0; i < rows; i++) {
                if (!isfinite(row[i].rstd + row[i].mean_g + row[i].mean_gx))
                    fill(line[i].dx, m, (T)NAN);
                else if (job->stream && vdx.op->contiguous && row[i].exponent == 0)
                    sweep_row(&line[i], g, m, &seam, 1);
                else
                    sweep_row(&line[i], g, m, &seam, 0);
                put(&vdx, dx[i], j, m, row[i].exponent);
            }
        }
    }
    close_seam(&seam);
    *at = walk;
}

#if BYTES >= 32
/* dx of a row, its ends in the seam and the rest pending. */
INLINE void begin_pending_dx(PendingDx *pending, const Line *line, const lnorm_walk *walk, Seam *seam)
{
    const lnorm_job *job = walk->job;
    const ptrdiff_t begin = until_aligned(line->dx, LINE), rest = (job->n - begin) % NARROW, last = job->n - NARROW;
    const int step = !job->op[LNORM_SCALE].block;
    const T *scale = (const T *)walk->at[LNORM_SCALE];
    PendingDx head = {.line = *line, .scale = scale}, tail = head;
    head.line.dx = seam->line + NARROW;
    write_dx(&head, NARROW, 0);
    begin_at_seam(seam, line->dx, begin);
    tail.line.x += last;
    tail.line.dy += last;
    tail.line.dx = seam->line;
    tail.scale += last * step;
    write_dx(&tail, NARROW, 0);
    end_at_seam(seam, line->dx + job->n, rest);
    *pending =
        (PendingDx){.line = *line, .scale = scale + begin * step, .left = job->n - begin - rest, .scale_step = step};
    pending->line.x += begin;
    pending->line.dy += begin;
    pending->line.dx += begin;
}

/* Sums and gradients of four rows, while dx of the four before is written around the caches. */
static void backward_in_turn(const lnorm_job *job, ptrdiff_t first, ptrdiff_t last, double *dscale, double *doffset)
{
    lnorm_walk walk;
    View vx, vscale, vdy;
    PendingDx pending[4] = {0};
    Seam seam;
    seam.open = 0;
    view_of(&vx, job, LNORM_X);
    view_of(&vscale, job, LNORM_SCALE);
    view_of(&vdy, job, LNORM_DY);
    lnorm_walk_to(&walk, job, first);
    for (int rows; first < last; first += rows) {
        lnorm_walk begin = walk;
        lnorm_row row[4];
        Line line[4];
        Total total_x[4], total_g[4], total_gx[4];
        rows = last - first < 4 ? 1 : 4;
        for (int i = 0; i < rows; i++) {
            standardize(job, first + i, &vx, walk.at[LNORM_X], &row[i]);
            total_of_row(&total_x[i], &total_g[i], &total_gx[i], &vx, &vscale, &vdy, walk.at[LNORM_X],
                         walk.at[LNORM_SCALE], walk.at[LNORM_DY], &row[i], 0, &pending[i]);
            line[i] = (Line){
                .dx = (T *)walk.at[LNORM_DX], .x = (const T *)walk.at[LNORM_X], .dy = (const T *)walk.at[LNORM_DY]};
            lnorm_walk_on(&walk, 1);
        }
        for (int i = 0; i < 4; i++)
            write_rest_dx(&pending[i]);
        if (rows == 4)
            mean_of_rows(row, total_x, total_g, total_gx, job->n, 4);
        else
            mean_of_rows(row, total_x, total_g, total_gx, job->n, 1);
        int special = 0;
        for (int i = 0; i < rows; i++) {
            special |= row[i].exponent || !isfinite(row[i].rstd + row[i].mean_g + row[i].mean_gx);
            know(&line[i], &row[i]);
        }
        if (special) {
            sweep_rows(&begin, first, first + rows, row, 0, job->n, dscale, doffset);
            continue;
        }
        if (rows == 4)
            add_gradients(line, 4, job->n, dscale, doffset);
        else
            add_gradients(line, 1, job->n, dscale, doffset);
        for (int i = 0; i < rows; i++)
            begin_pending_dx(&pending[i], &line[i], &begin, &seam);
    }
    for (int i = 0; i < 4; i++)
        write_rest_dx(&pending[i]);
    close_seam(&seam);
    FENCE(1);
}
#endif

/* dx from the p-th observation on, and the terms of the gradients. */
INLINE V dx_across(V *dyx, V x, V dy, V scale, const Strip *strip, ptrdiff_t p)
{
    const V xhat = XHAT(x, load(strip->k + p), load(strip->r + p), load(strip->c + p));
    *dyx = dy * xhat;
    return DX(scale * dy, xhat, load(strip->r + p), load(strip->mean_g + p), load(strip->mean_gx + p));
}

/* One element of m observations side by side; the sums of dy·x̂ and dy over them, of which observation p goes to lane
   p mod LANES, down to one register. The last register of dx may overlap the one before; it is computed before anything is
   written, because dx may be x or dy. What is read later is fetched. */
INLINE void sweep_across(T *dx, const T *x, const T *dy, T scale, const Strip *strip, ptrdiff_t m, D *sum_dyx,
                         D *sum_dy)
{
    const ptrdiff_t x_ahead = ahead_of(strip, strip->x_step), dy_ahead = ahead_of(strip, strip->dy_step);
    const V g = SPLAT(scale), dy_end = load(dy + m - W);
    V tx[U], ty[U], dyx_end, dyx;
    const V dx_end = dx_across(&dyx_end, load(x + m - W), dy_end, g, strip, m - W);
    ptrdiff_t p = 0;
    D wide_x[DU], wide_y[DU];
    UNROLL for (int u = 0; u < U; u++) tx[u] = ty[u] = SPLAT((T)0);
    for (; p + LANES <= m; p += LANES)
        UNROLL for (int u = 0; u < U; u++)
        {
            const V y = load(dy + p + u * W);
            if (u * W % NARROW == 0) {
                PREFETCH(x + p + u * W + x_ahead);
                PREFETCH(dy + p + u * W + dy_ahead);
            }
            store(dx + p + u * W, dx_across(&dyx, load(x + p + u * W), y, g, strip, p + u * W));
            tx[u] += dyx;
            ty[u] += y;
        }
    UNROLL for (int u = 0; u < U; u++)
    {
        if (p + W <= m) {
            const V y = load(dy + p);
            store(dx + p, dx_across(&dyx, load(x + p), y, g, strip, p));
            tx[u] += dyx;
            ty[u] += y;
        } else if (p < m) {
            T end[2 * W] = {0};
            store(end, dyx_end);
            tx[u] += load(end + (p + W - m));
            store(end, dy_end);
            ty[u] += load(end + (p + W - m));
        }
        p += W;
    }
    store(dx + m - W, dx_end);
    for (int u = 0; u < U; u++) {
        widen(wide_x + u * PARTS, tx[u]);
        widen(wide_y + u * PARTS, ty[u]);
    }
    *sum_dyx = fold_registers(wide_x);
    *sum_dy = fold_registers(wide_y);
}

/* dx of a strip, for DW elements at a time. False, and nothing is written, if an observation is not finite or near the limits
   of its type. */
static NOINLINE int sweep_strip(const lnorm_walk *walk, const lnorm_row *row, ptrdiff_t begin, ptrdiff_t end,
                                double *dscale, double *doffset, int m)
{
    const lnorm_operand *op = walk->job->op;
    Strip strip;
    strip_of(&strip, walk, m);
    for (int i = 0; i < m; i++) {
        if (row[i].exponent || !isfinite(row[i].rstd + row[i].mean_g + row[i].mean_gx))
            return 0;
        strip.k[i] = (T)row[i].center;
        strip.r[i] = (T)row[i].rstd;
        strip.c[i] = (T)row[i].mean_x;
        strip.mean_g[i] = (T)row[i].mean_g;
        strip.mean_gx[i] = (T)row[i].mean_gx;
    }
    for (ptrdiff_t j = begin; j < end; j += DW) {
        const int elements = end - j < DW ? (int)(end - j) : DW;
        D sum_dyx[DW], sum_dy[DW];
        double sum[DW];
        for (int q = 0; q < elements; q++) {
            T row[STRIP] __attribute__((aligned(LINE)));
            T *dx = (T *)(walk->at[LNORM_DX] + (j + q) * op[LNORM_DX].inner[0]);
            if (walk->job->stream)
                fetch_ends(dx + 2 * (op[LNORM_DX].inner[0] / T_SIZE), m);
            sweep_across(walk->job->stream ? row : dx, (const T *)(walk->at[LNORM_X] + (j + q) * op[LNORM_X].inner[0]),
                         (const T *)(walk->at[LNORM_DY] + (j + q) * op[LNORM_DY].inner[0]),
                         *(const T *)(walk->at[LNORM_SCALE] + (j + q) * op[LNORM_SCALE].inner[0]), &strip, m,
                         &sum_dyx[q], &sum_dy[q]);
            if (walk->job->stream)
                stream_row(dx, row, m);
        }
        if (!dscale)
            continue;
        for (int q = elements; q < DW; q++)
            sum_dyx[q] = sum_dy[q] = (D){0};
        fold_rows(sum, sum_dyx, DW);
        for (int q = 0; q < elements; q++)
            dscale[j - begin + q] += sum[q];
        fold_rows(sum, sum_dy, DW);
        for (int q = 0; q < elements; q++)
            doffset[j - begin + q] += sum[q];
    }
    return 1;
}

static void backward_sweep(const lnorm_job *job, ptrdiff_t first, ptrdiff_t last, const lnorm_row *row, ptrdiff_t begin,
                           ptrdiff_t end, double *dscale, double *doffset)
{
    lnorm_walk walk;
    lnorm_walk_to(&walk, job, first);
    if (!(job->columns && last - first >= NARROW &&
          sweep_strip(&walk, row, begin, end, dscale, doffset, (int)(last - first))))
        sweep_rows(&walk, first, last, row, begin, end, dscale, doffset);
    FENCE(job->stream);
}
