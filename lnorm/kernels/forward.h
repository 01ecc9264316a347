/* y = γ·x̂ + β with x̂ = (x - μ)·rstd, row by row: Ba, Kiros and Hinton, Layer Normalization, 2016, arXiv:1607.06450. */

#define AFFINE(x, i, g, b) (XHAT(x, k[i], r[i], c[i]) * (g) + (b))

INLINE void affine_elements(T *const *y, const T *const *x, const T *scale, const T *offset, ptrdiff_t begin,
                            ptrdiff_t end, const Stats *s, int rows)
{
    for (int i = 0; i < rows; i++) {
        const T k[1] = {s[i].k}, r[1] = {s[i].r}, c[1] = {s[i].c};
        for (ptrdiff_t j = begin; j < end; j++)
            y[i][j] = AFFINE(x[i][j], 0, scale[j], offset[j]);
    }
}

/* m elements of several rows that share scale and offset; `centered` when c is 0 in all of them. Each row's first and
   last register may overlap the aligned ones between them; they are computed before anything is written, because y may
   be x. */
INLINE void affine(T *const *y, const T *const *x, const T *scale, const T *offset, ptrdiff_t m, const Stats *s,
                   int rows, int centered)
{
    V k[ROWS], r[ROWS], c[ROWS], first[ROWS], last[ROWS];
    const ptrdiff_t end = m - W;
    if (end < 0) {
        affine_elements(y, x, scale, offset, 0, m, s, rows);
        return;
    }
    for (int i = 0; i < rows; i++) {
        k[i] = SPLAT(s[i].k);
        r[i] = SPLAT(s[i].r);
        c[i] = SPLAT(centered ? (T)0 : s[i].c); /* the compiler leaves out a subtraction of 0 */
        first[i] = AFFINE(load(x[i]), i, load(scale), load(offset));
        last[i] = AFFINE(load(x[i] + end), i, load(scale + end), load(offset + end));
    }
    for (ptrdiff_t j = until_aligned(y[0], W * T_SIZE); j <= end; j += W) {
        const V g = load(scale + j), b = load(offset + j);
        for (int i = 0; i < rows; i++)
            store(y[i] + j, AFFINE(load(x[i] + j), i, g, b));
    }
    for (int i = 0; i < rows; i++) {
        store(y[i], first[i]);
        store(y[i] + end, last[i]);
    }
}

/* The same for one row around the caches: whole lines, and what is left at both ends one element at a time. */
INLINE void affine_streamed(T *y, const T *x, const T *scale, const T *offset, ptrdiff_t m, const Stats *s,
                            ptrdiff_t ahead)
{
    const V k[1] = {SPLAT(s->k)}, r[1] = {SPLAT(s->r)}, c[1] = {SPLAT(s->c)};
    const ptrdiff_t head = until_aligned(y, LINE), begin = head < m ? head : m;
    const ptrdiff_t end = begin + (m - begin) / (LINE / T_SIZE) * (LINE / T_SIZE);
    affine_elements(&y, &x, scale, offset, 0, begin, s, 1);
    for (ptrdiff_t j = begin; j < end; j += W) {
        /* twice for each line: the first call for it is often lost (measured on Zen 4: 1.17 copies with one, 1.00) */
        for (int l = 0; l < W * T_SIZE; l += LINE / 2)
            PREFETCH((const char *)(x + j) + ahead + l);
        stream_to(y + j, AFFINE(load(x + j), 0, load(scale + j), load(offset + j)));
    }
    affine_elements(&y, &x, scale, offset, end, m, s, 1);
}

/* A block of one row, wherever it is. */
INLINE void affine_row(View *vy, char *y, View *vx, const char *x, const T *scale, const T *offset, ptrdiff_t j,
                       ptrdiff_t m, const Stats *s)
{
    T *to = place(vy, y, j, 0);
    const T *from = get(vx, x, j, m, s->exponent);
    if (isnan(s->rstd))
        for (ptrdiff_t l = 0; l < m; l++)
            to[l] = (T)NAN;
    else if (vx->job->stream && vy->op->contiguous)
        affine_streamed(to, from, scale, offset, m, s, vx->job->n * T_SIZE * (vx->job->n <= TOGETHER ? ROWS : 1));
    else
        affine(&to, &from, scale, offset, m, s, 1, 0);
    put(vy, y, j, m, 0);
}

static void forward(const lnorm_job *job, ptrdiff_t first, ptrdiff_t last)
{
    const ptrdiff_t n = job->n;
    const ptrdiff_t together = job->op[LNORM_X].contiguous && n <= TOGETHER ? ROWS : 1;
    const int columns = lies_in_columns(job);
    const int shared = job->op[LNORM_Y].contiguous && !job->stream;
    lnorm_walk walk;
    View vx, vscale, voffset, vy;
    view_of(&vx, job, LNORM_X);
    view_of(&vscale, job, LNORM_SCALE);
    view_of(&voffset, job, LNORM_OFFSET);
    view_of(&vy, job, LNORM_Y);
    lnorm_walk_to(&walk, job, first);
    while (first < last) {
        if (columns && last - first >= W && lnorm_walk_left(&walk) >= W &&
            forward_columns(&walk, &vx, &vscale, &voffset, job->mean ? job->mean + first : NULL,
                            job->mean ? job->rstd + first : NULL)) {
            lnorm_walk_on(&walk, W);
            first += W;
            continue;
        }
        const int rows = (int)(last - first < together ? last - first : together);
        char *x[ROWS], *scale[ROWS], *offset[ROWS], *y[ROWS];
        Stats s[ROWS];
        int alike = shared && rows == ROWS, centered = 1;
        for (int i = 0; i < rows; i++, lnorm_walk_on(&walk, 1)) {
            x[i] = walk.at[LNORM_X];
            scale[i] = walk.at[LNORM_SCALE];
            offset[i] = walk.at[LNORM_OFFSET];
            y[i] = walk.at[LNORM_Y];
            alike = alike && scale[i] == scale[0] && offset[i] == offset[0];
        }
        if (rows == ROWS)
            stats_of(s, &vx, x, ROWS);
        else
            for (int i = 0; i < rows; i++)
                stats_of(s + i, &vx, x + i, 1);
        ptrdiff_t width = block_width(job);
        for (int i = 0; i < rows; i++) {
            alike = alike && s[i].exponent == 0 && !isnan(s[i].rstd);
            centered = centered && s[i].c == 0;
            width = s[i].exponent == 0 ? width : LNORM_BLOCK;
            if (job->mean) {
                job->mean[first + i] = s[i].mean;
                job->rstd[first + i] = s[i].rstd;
            }
        }
        for (ptrdiff_t j = 0; j < n; j += width) {
            const ptrdiff_t m = n - j < width ? n - j : width;
            if (alike) {
                T *to[ROWS];
                const T *from[ROWS];
                for (int i = 0; i < ROWS; i++) {
                    to[i] = (T *)y[i] + j;
                    from[i] = (const T *)x[i] + j;
                }
                const T *g = get(&vscale, scale[0], j, m, 0), *b = get(&voffset, offset[0], j, m, 0);
                if (centered)
                    affine(to, from, g, b, m, s, ROWS, 1);
                else
                    affine(to, from, g, b, m, s, ROWS, 0);
            } else {
                for (int i = 0; i < rows; i++)
                    affine_row(&vy, y[i], &vx, x[i], get(&vscale, scale[i], j, m, 0), get(&voffset, offset[i], j, m, 0),
                               j, m, &s[i]);
            }
        }
        first += rows;
    }
    FENCE(job->stream);
}
