/* y = γ·x̂ + β with x̂ = (x - μ)·rstd, row by row: Ba, Kiros and Hinton, Layer Normalization, 2016, arXiv:1607.06450. */

#define AFFINE(x, i, g, b) (XHAT(x, k[i], r[i], c[i]) * (g) + (b))

INLINE void affine_elements(T *y, const T *x, const T *scale, const T *offset, ptrdiff_t begin, ptrdiff_t end,
                            const Stats *s, int row)
{
    const T *k = s->k, *r = s->r, *c = s->c;
    for (ptrdiff_t j = begin; j < end; j++)
        y[j] = AFFINE(x[j], row, scale[j], offset[j]);
}

/* m elements of rows first ... first + rows - 1 of a group, which share scale and offset; `centered` when c is 0 in all
   of them. Their first and last registers may overlap the aligned ones between; they are computed before anything is
   written, because y may be x. */
INLINE void affine(T *y, ptrdiff_t y_stride, const T *x, ptrdiff_t x_stride, const T *scale, const T *offset,
                   ptrdiff_t m, const Stats *s, int first, int rows, int centered)
{
    V k[4], r[4], c[4], head[4], tail[4];
    const ptrdiff_t end = m - W;
    if (end < 0) {
        for (int i = 0; i < rows; i++)
            affine_elements(y + i * y_stride, x + i * x_stride, scale, offset, 0, m, s, first + i);
        return;
    }
    const ptrdiff_t begin = m % W || m >= 8 * W ? until_aligned(y, W * T_SIZE) : 0;
    const int rest = (m - begin) % W != 0;
    for (int i = 0; i < rows; i++) {
        k[i] = SPLAT(s->k[first + i]);
        r[i] = SPLAT(s->r[first + i]);
        c[i] = SPLAT(centered ? (T)0 : s->c[first + i]); /* the compiler leaves out a subtraction of 0 */
        head[i] = tail[i] = k[i];
        if (begin)
            head[i] = AFFINE(load(x + i * x_stride), i, load(scale), load(offset));
        if (rest)
            tail[i] = AFFINE(load(x + i * x_stride + end), i, load(scale + end), load(offset + end));
    }
    for (ptrdiff_t j = begin; j <= end; j += W) {
        const V g = load(scale + j), b = load(offset + j);
        for (int i = 0; i < rows; i++)
            store(y + i * y_stride + j, AFFINE(load(x + i * x_stride + j), i, g, b));
    }
    for (int i = 0; i < rows; i++) {
        if (begin)
            store(y + i * y_stride, head[i]);
        if (rest)
            store(y + i * y_stride + end, tail[i]);
    }
}

/* The same for one row around the caches: whole lines, and what is left at both ends one element at a time. */
INLINE void affine_streamed(T *y, const T *x, const T *scale, const T *offset, ptrdiff_t m, const Stats *s, int row,
                            ptrdiff_t ahead)
{
    const V k[1] = {SPLAT(s->k[row])}, r[1] = {SPLAT(s->r[row])}, c[1] = {SPLAT(s->c[row])};
    const ptrdiff_t head = until_aligned(y, LINE), begin = head < m ? head : m;
    const ptrdiff_t end = begin + (m - begin) / (LINE / T_SIZE) * (LINE / T_SIZE);
    affine_elements(y, x, scale, offset, 0, begin, s, row);
    for (ptrdiff_t j = begin; j < end; j += W) {
        /* twice for each line: the first call for it is often lost (measured on Zen 4: 1.17 copies with one, 1.00) */
        for (int l = 0; l < W * T_SIZE; l += LINE / 2)
            PREFETCH((const char *)(x + j) + ahead + l);
        stream_to(y + j, AFFINE(load(x + j), 0, load(scale + j), load(offset + j)));
    }
    affine_elements(y, x, scale, offset, end, m, s, row);
}

/* A block of one row, wherever it is. */
INLINE void affine_row(View *vy, char *y, View *vx, const char *x, const T *scale, const T *offset, ptrdiff_t j,
                       ptrdiff_t m, const Stats *s, int row, ptrdiff_t ahead)
{
    T *to = place(vy, y, j, 0);
    const T *from = get(vx, x, j, m, s->exponent[row]);
    if (isnan(s->rstd[row]))
        for (ptrdiff_t l = 0; l < m; l++)
            to[l] = (T)NAN;
    else if (vx->job->stream && vy->op->contiguous)
        affine_streamed(to, from, scale, offset, m, s, row, ahead);
    else
        affine(to, 0, from, 0, scale, offset, m, s, row, 1, 0);
    put(vy, y, j, m, 0);
}

/* y of one row or of ROWS. */
INLINE void forward_rows(const lnorm_walk *walk, View *vx, View *vscale, View *voffset, View *vy, double *mean,
                         double *rstd, int rows, int alike)
{
    const lnorm_job *job = walk->job;
    const int last = job->outer_ndim - 1;
    ptrdiff_t stride[LNORM_GRAD] = {0}, width = block_width(job);
    Stats s;
    int centered = 1;
    if (rows > 1)
        for (int k = 0; k < LNORM_GRAD; k++)
            stride[k] = job->op[k].outer[last];
    stats_of(&s, vx, walk->at[LNORM_X], stride[LNORM_X], rows);
    for (int i = 0; i < rows; i++) {
        centered &= !s.off_center[i];
        alike &= s.exponent[i] == 0 && !isnan(s.rstd[i]);
        width = s.exponent[i] == 0 ? width : LNORM_BLOCK;
        if (mean) {
            mean[i] = s.mean[i];
            rstd[i] = s.rstd[i];
        }
    }
    for (ptrdiff_t j = 0; j < job->n; j += width) {
        const ptrdiff_t m = job->n - j < width ? job->n - j : width;
        if (alike) {
            T *y = (T *)walk->at[LNORM_Y] + j;
            const T *x = (const T *)walk->at[LNORM_X] + j;
            const ptrdiff_t y_stride = stride[LNORM_Y] / T_SIZE, x_stride = stride[LNORM_X] / T_SIZE;
            const T *g = get(vscale, walk->at[LNORM_SCALE], j, m, 0),
                    *b = get(voffset, walk->at[LNORM_OFFSET], j, m, 0);
            for (int i = 0; i < rows; i += 4)
                if (centered && rows < 8)
                    affine(y + i * y_stride, y_stride, x + i * x_stride, x_stride, g, b, m, &s, i, rows < 4 ? rows : 4,
                           1);
                else
                    affine(y + i * y_stride, y_stride, x + i * x_stride, x_stride, g, b, m, &s, i, rows < 4 ? rows : 4,
                           0);
        } else {
            for (int i = 0; i < rows; i++)
                affine_row(vy, walk->at[LNORM_Y] + i * stride[LNORM_Y], vx, walk->at[LNORM_X] + i * stride[LNORM_X],
                           get(vscale, walk->at[LNORM_SCALE] + i * stride[LNORM_SCALE], j, m, 0),
                           get(voffset, walk->at[LNORM_OFFSET] + i * stride[LNORM_OFFSET], j, m, 0), j, m, &s, i,
                           rows * job->n * T_SIZE);
        }
    }
}

static void forward(const lnorm_job *job, ptrdiff_t first, ptrdiff_t last)
{
    const int columns = lies_in_columns(job), dim = job->outer_ndim - 1;
    const int together = job->op[LNORM_X].contiguous && job->n <= TOGETHER;
    /* rows that stand side by side in x and y and share their parameters */
    const int plain = job->op[LNORM_X].contiguous && job->op[LNORM_Y].contiguous && !job->stream;
    const int alike = plain && dim >= 0 && job->op[LNORM_SCALE].outer[dim] == 0 &&
                      job->op[LNORM_OFFSET].outer[dim] == 0 && job->op[LNORM_X].outer[dim] % T_SIZE == 0;
    lnorm_walk walk;
    View vx, vscale, voffset, vy;
    view_of(&vx, job, LNORM_X);
    view_of(&vscale, job, LNORM_SCALE);
    view_of(&voffset, job, LNORM_OFFSET);
    view_of(&vy, job, LNORM_Y);
    lnorm_walk_to(&walk, job, first);
    for (ptrdiff_t rows, singles = columns ? 0 : last - first; first < last;
         lnorm_walk_on(&walk, rows), first += rows) {
        const ptrdiff_t left = lnorm_walk_left(&walk), most = left < last - first ? left : last - first;
        double *mean = job->mean ? job->mean + first : NULL, *rstd = job->mean ? job->rstd + first : NULL;
        if (singles <= 0) {
            rows = forward_columns(&walk, &vx, &vscale, &voffset, mean, rstd, most);
            if (rows > 0)
                continue;
            singles = -rows;
        }
        if (together && job->n <= FEW && most >= 8)
            forward_rows(&walk, &vx, &vscale, &voffset, &vy, mean, rstd, 8, alike), rows = 8;
        else if (together && most >= 4)
            forward_rows(&walk, &vx, &vscale, &voffset, &vy, mean, rstd, 4, alike), rows = 4;
        else
            forward_rows(&walk, &vx, &vscale, &voffset, &vy, mean, rstd, 1, plain), rows = 1;
        singles -= rows;
    }
    FENCE(job->stream);
}
