/* y = γ·x̂ + β with x̂ = (x - μ)·rstd, row by row: Ba, Kiros and Hinton, Layer Normalization, 2016, arXiv:1607.06450. */

#define AFFINE(x, k, r, c, g, b) (XHAT(x, k, r, c) * (g) + (b))

/* m elements of `rows` rows from the first-th of a group on, which share scale and offset. Their first and last
   registers may overlap the aligned ones between; they are computed before anything is written, because y may be x. */
INLINE void affine(T *y, ptrdiff_t y_step, const T *x, ptrdiff_t x_step, const T *scale, const T *offset, ptrdiff_t m,
                   const Stats *s, int first, int rows)
{
    V k[4], r[4], c[4], head[4], tail[4];
    const ptrdiff_t end = m - W;
    if (end < 0) {
        for (int i = 0; i < rows; i++)
            for (ptrdiff_t j = 0; j < m; j++)
                y[i * y_step + j] =
                    AFFINE(x[i * x_step + j], s->k[first + i], s->r[first + i], s->c[first + i], scale[j], offset[j]);
        return;
    }
    const ptrdiff_t begin = m % W || m >= 8 * W ? until_aligned(y, W * T_SIZE) : 0;
    const int rest = (m - begin) % W != 0;
    for (int i = 0; i < rows; i++) {
        k[i] = SPLAT(s->k[first + i]);
        r[i] = SPLAT(s->r[first + i]);
        c[i] = SPLAT(s->c[first + i]);
        head[i] = tail[i] = k[i];
        if (begin)
            head[i] = AFFINE(load(x + i * x_step), k[i], r[i], c[i], load(scale), load(offset));
        if (rest)
            tail[i] = AFFINE(load(x + i * x_step + end), k[i], r[i], c[i], load(scale + end), load(offset + end));
    }
    for (ptrdiff_t j = begin; j <= end; j += W) {
        const V g = load(scale + j), b = load(offset + j);
        for (int i = 0; i < rows; i++)
            store(y + i * y_step + j, AFFINE(load(x + i * x_step + j), k[i], r[i], c[i], g, b));
    }
    for (int i = 0; i < rows; i++) {
        if (begin)
            store(y + i * y_step, head[i]);
        if (rest)
            store(y + i * y_step + end, tail[i]);
    }
}

/* The same around the caches: whole lines, and what is left of one at both ends. */
INLINE void affine_streamed(T *y, const T *x, const T *scale, const T *offset, ptrdiff_t m, const Stats *s, int i)
{
    const ptrdiff_t line = LINE / T_SIZE, begin = until_aligned(y, LINE), end = begin + (m - begin) / line * line;
    const V vk = SPLAT(s->k[i]), vr = SPLAT(s->r[i]), vc = SPLAT(s->c[i]);
    if (m < begin + line) {
        affine(y, 0, x, 0, scale, offset, m, s, i, 1);
        return;
    }
    for (ptrdiff_t j = 0; j < begin; j += W)
        store_part(y + j, AFFINE(load(x + j), vk, vr, vc, load(scale + j), load(offset + j)), 0,
                   begin - j < W ? begin - j : W);
    for (ptrdiff_t j = begin; j < end; j += W)
        stream_to(y + j, AFFINE(load(x + j), vk, vr, vc, load(scale + j), load(offset + j)));
    for (ptrdiff_t j = m - W; j > end - W; j -= W)
        store_part(y + j, AFFINE(load(x + j), vk, vr, vc, load(scale + j), load(offset + j)), end > j ? end - j : 0, W);
}

/* Rows whose statistics are taken together, where they are (`step` bytes from one to the next), and how far they got. */
typedef struct {
    int rows, alike; /* alike: side by side in x and y, with the same parameters, and nothing special about a row */
    char *at[LNORM_GRAD];
    ptrdiff_t step[LNORM_GRAD];
    View x;
    Progress progress;
    Stats s;
} Group;

/* The next group of at most ROWS rows, of none at the end. Its first elements are on their way to their mean. */
INLINE void begin_group(Group *group, lnorm_walk *walk, ptrdiff_t left, ptrdiff_t most)
{
    const lnorm_job *job = walk->job;
    const ptrdiff_t inner = lnorm_walk_left(walk);
    left = left < inner ? left : inner;
    most = left < most ? left : most;
    const int together = job->op[LNORM_X].contiguous && job->n <= TOGETHER ? (job->n <= FEW ? 8 : 4) : 1;
    group->rows = most <= 0 ? 0 : most < together ? 1 : together;
    for (int k = 0; k < LNORM_GRAD; k++) {
        group->at[k] = walk->at[k];
        group->step[k] = job->outer_ndim ? job->op[k].outer[job->outer_ndim - 1] : 0;
    }
    if (group->rows == 1)
        begin_stats(&group->progress, &group->x, group->at[LNORM_X], 0, 1);
    else if (group->rows == 4)
        begin_stats(&group->progress, &group->x, group->at[LNORM_X], group->step[LNORM_X], 4);
    else if (group->rows)
        begin_stats(&group->progress, &group->x, group->at[LNORM_X], group->step[LNORM_X], 8);
    lnorm_walk_on(walk, group->rows);
}

/* The m elements from the b-th on of row i. */
INLINE void sum_row(Group *group, int i, ptrdiff_t b, ptrdiff_t m, ptrdiff_t n, RowSums *sums)
{
    add_to_stats(&group->progress, i, sums, get(&group->x, group->at[LNORM_X] + i * group->step[LNORM_X], b, m, 0), b,
                 m, n);
}

INLINE void finish_group(Group *group, double *mean, double *rstd, int alike)
{
    if (group->rows == 1)
        finish_stats(&group->s, &group->progress, &group->x, group->at[LNORM_X], 0, 1);
    else if (group->rows == 4)
        finish_stats(&group->s, &group->progress, &group->x, group->at[LNORM_X], group->step[LNORM_X], 4);
    else if (group->rows)
        finish_stats(&group->s, &group->progress, &group->x, group->at[LNORM_X], group->step[LNORM_X], 8);
    group->alike = alike;
    for (int i = 0; i < group->rows; i++) {
        group->alike &= group->s.exponent[i] == 0 && !isnan(group->s.rstd[i]);
        if (mean) {
            mean[i] = group->s.mean[i];
            rstd[i] = group->s.rstd[i];
        }
    }
}

/* The m elements from the b-th on of row i. Streamed, they begin and end with a line as far as the row allows it. */
INLINE void write_row(Group *group, int i, ptrdiff_t b, ptrdiff_t m, View *vscale, View *voffset, View *vy,
                      int streamed)
{
    const Stats *s = &group->s;
    char *y = group->at[LNORM_Y] + i * group->step[LNORM_Y];
    streamed = streamed && vy->op->contiguous;
    if (streamed) {
        const ptrdiff_t over = (ptrdiff_t)((uintptr_t)y % LINE / T_SIZE), begin = b ? b - over : 0;
        m = b + m < vy->job->n ? b + m - over - begin : b + m - begin;
        b = begin;
    }
    T *to = place(vy, y, b, 0);
    const T *x = get(&group->x, group->at[LNORM_X] + i * group->step[LNORM_X], b, m, s->exponent[i]);
    const T *scale = get(vscale, group->at[LNORM_SCALE] + i * group->step[LNORM_SCALE], b, m, 0);
    const T *offset = get(voffset, group->at[LNORM_OFFSET] + i * group->step[LNORM_OFFSET], b, m, 0);
    if (isnan(s->rstd[i]))
        fill(to, m, (T)NAN);
    else if (streamed)
        affine_streamed(to, x, scale, offset, m, s, i);
    else
        affine(to, 0, x, 0, scale, offset, m, s, i, 1);
    put(vy, y, b, m, 0);
}

/* The m elements from the b-th on of all rows. */
INLINE void write_group(Group *group, ptrdiff_t b, ptrdiff_t m, View *vscale, View *voffset, View *vy, int streamed)
{
    T *y = (T *)group->at[LNORM_Y] + b;
    const T *x = (const T *)group->at[LNORM_X] + b;
    const ptrdiff_t y_step = group->step[LNORM_Y] / T_SIZE, x_step = group->step[LNORM_X] / T_SIZE;
    if (!group->alike) {
        for (int i = 0; i < group->rows; i++)
            write_row(group, i, b, m, vscale, voffset, vy, streamed);
        return;
    }
    const T *scale = get(vscale, group->at[LNORM_SCALE], b, m, 0),
            *offset = get(voffset, group->at[LNORM_OFFSET], b, m, 0);
    if (group->rows == 1)
        affine(y, 0, x, 0, scale, offset, m, &group->s, 0, 1);
    else
        for (int i = 0; i < group->rows; i += 4)
            affine(y + i * y_step, y_step, x + i * x_step, x_step, scale, offset, m, &group->s, i, 4);
}

/* Whether the rows of a group may be written together. */
INLINE int lie_alike(const lnorm_job *job)
{
    const int last = job->outer_ndim - 1;
    return job->op[LNORM_X].contiguous && job->op[LNORM_Y].contiguous &&
           (last < 0 || (job->op[LNORM_SCALE].outer[last] == 0 && job->op[LNORM_OFFSET].outer[last] == 0));
}

static NOINLINE void forward_in_caches(lnorm_walk *walk, ptrdiff_t first, ptrdiff_t last)
{
    const lnorm_job *job = walk->job;
    const ptrdiff_t n = job->n;
    const int alike = lie_alike(job);
    Group group;
    RowSums sums;
    View vscale, voffset, vy;
    view_of(&vscale, job, LNORM_SCALE);
    view_of(&voffset, job, LNORM_OFFSET);
    view_of(&vy, job, LNORM_Y);
    view_of(&group.x, job, LNORM_X);
    begin_group(&group, walk, last - first, ROWS);
    while (group.rows) {
        double *mean = job->mean ? job->mean + first : NULL, *rstd = job->mean ? job->rstd + first : NULL;
        for (int i = 0; i < group.rows; i++)
            for (ptrdiff_t b = 0; b < n; b += LNORM_BLOCK)
                sum_row(&group, i, b, n - b < LNORM_BLOCK ? n - b : LNORM_BLOCK, n, &sums);
        first += group.rows;
        finish_group(&group, mean, rstd, alike);
        const ptrdiff_t width = group.alike ? block_width(job) : LNORM_BLOCK;
        for (ptrdiff_t b = 0; b < n; b += width)
            write_group(&group, b, n - b < width ? n - b : width, &vscale, &voffset, &vy, 0);
        begin_group(&group, walk, last - first, ROWS);
    }
}

/* The block from element b on, if it stands side by side. */
INLINE void fetch_block(const Group *group, ptrdiff_t b)
{
    for (ptrdiff_t l = 0; l < LNORM_BLOCK * T_SIZE; l += LINE)
        PREFETCH(group->at[LNORM_X] + b * T_SIZE + l);
}

/* A row is written while the next is summed, block by block, so that memory is never only read or only written. The last
   block is written after the next row's mean and root have been asked for: nothing waits for those. */
static NOINLINE void forward_around_caches(lnorm_walk *walk, ptrdiff_t first, ptrdiff_t last)
{
    const lnorm_job *job = walk->job;
    const ptrdiff_t n = job->n, last_block = (n - 1) / LNORM_BLOCK * LNORM_BLOCK;
    Group groups[3], *ready = &groups[0], *next = &groups[1], *after = &groups[2];
    View vscale, voffset, vy;
    view_of(&vscale, job, LNORM_SCALE);
    view_of(&voffset, job, LNORM_OFFSET);
    view_of(&vy, job, LNORM_Y);
    for (int i = 0; i < 3; i++)
        view_of(&groups[i].x, job, LNORM_X);
    ready->rows = 0;
    begin_group(next, walk, last - first, 1);
    while (next->rows + ready->rows) {
        RowSums sums;
        if (next->rows) { /* the lines that a row shares with its neighbours are written through the caches */
            PREFETCH_TO_WRITE(next->at[LNORM_Y]);
            PREFETCH_TO_WRITE(next->at[LNORM_Y] + n * T_SIZE);
        }
        for (ptrdiff_t b = 0; b < n; b += LNORM_BLOCK) {
            const ptrdiff_t m = n - b < LNORM_BLOCK ? n - b : LNORM_BLOCK;
            if (next->rows) {
                fetch_block(next, b + m);
                sum_row(next, 0, b, m, n, &sums);
            }
            if (b && ready->rows)
                write_row(ready, 0, b - LNORM_BLOCK, LNORM_BLOCK, &vscale, &voffset, &vy, 1);
        }
        begin_group(after, walk, last - first - next->rows, 1);
        finish_group(next, job->mean ? job->mean + first : NULL, job->mean ? job->rstd + first : NULL, 0);
        if (ready->rows)
            write_row(ready, 0, last_block, n - last_block, &vscale, &voffset, &vy, 1);
        first += next->rows;
        Group *const free = ready;
        ready = next;
        next = after;
        after = free;
    }
    FENCE(1);
}

static void forward(const lnorm_job *job, ptrdiff_t first, ptrdiff_t last)
{
    lnorm_walk walk;
    lnorm_walk_to(&walk, job, first);
    if (!lies_in_columns(job)) {
        (job->stream ? forward_around_caches : forward_in_caches)(&walk, first, last);
        return;
    }
    View vx, vscale, voffset;
    view_of(&vx, job, LNORM_X);
    view_of(&vscale, job, LNORM_SCALE);
    view_of(&voffset, job, LNORM_OFFSET);
    while (first < last) {
        const ptrdiff_t left = lnorm_walk_left(&walk), most = left < last - first ? left : last - first;
        const ptrdiff_t m = forward_columns(&walk, &vx, &vscale, &voffset, job->mean ? job->mean + first : NULL,
                                            job->mean ? job->rstd + first : NULL, most);
        if (m < 0)
            forward_in_caches(&walk, first, first - m);
        else
            lnorm_walk_on(&walk, m);
        first += m < 0 ? -m : m;
    }
    FENCE(job->stream);
}

/* A long row that threads share; see kernels.h. */
INLINE void long_row(Group *group, const lnorm_job *job, ptrdiff_t i)
{
    lnorm_walk walk;
    lnorm_walk_to(&walk, job, i);
    view_of(&group->x, job, LNORM_X);
    begin_group(group, &walk, 1, 1);
}

static void long_sums(const lnorm_job *job, ptrdiff_t i, ptrdiff_t first, ptrdiff_t last, void *sums)
{
    Group group;
    long_row(&group, job, i);
    for (ptrdiff_t segment = first; segment < last; segment++) {
        const ptrdiff_t begin = segment * LNORM_SEGMENT, rest = job->n - begin;
        const ptrdiff_t end = rest < LNORM_SEGMENT ? job->n : begin + LNORM_SEGMENT;
        Sums segment_sums;
        for (ptrdiff_t b = begin; b < end; b += LNORM_BLOCK) {
            const ptrdiff_t m = end - b < LNORM_BLOCK ? end - b : LNORM_BLOCK;
            Lanes lanes;
            fetch_block(&group, b + m);
            add_up(&lanes, get(&group.x, group.at[LNORM_X], b, m, 0), m, *group.progress.center);
            empty_lanes(&segment_sums, &lanes, b == begin);
        }
        memcpy((char *)sums + segment * LNORM_SUMS_BYTES, &segment_sums, sizeof segment_sums);
    }
}

static void long_stats(const lnorm_job *job, ptrdiff_t i, ptrdiff_t segments, const void *sums, lnorm_row *row)
{
    Group group;
    Sums total = {0}, segment;
    long_row(&group, job, i);
    for (ptrdiff_t k = 0; k < segments; k++) {
        memcpy(&segment, (const char *)sums + k * LNORM_SUMS_BYTES, sizeof segment);
        add_segment(&total, &segment, k == 0);
    }
    *group.progress.total_d = total_of(&total.d);
    *group.progress.total_d2 = total_of(&total.d2);
    finish_group(&group, job->mean ? job->mean + i : NULL, job->mean ? job->rstd + i : NULL, 0);
    row->center = *group.s.k;
    row->rstd = *group.s.r;
    row->mean_x = *group.s.c;
    row->exponent = *group.s.exponent;
}

static void long_write(const lnorm_job *job, ptrdiff_t i, ptrdiff_t begin, ptrdiff_t end, const lnorm_row *row)
{
    Group group;
    View vscale, voffset, vy;
    view_of(&vscale, job, LNORM_SCALE);
    view_of(&voffset, job, LNORM_OFFSET);
    view_of(&vy, job, LNORM_Y);
    long_row(&group, job, i);
    *group.s.k = (T)row->center;
    *group.s.r = (T)row->rstd;
    *group.s.c = (T)row->mean_x;
    *group.s.rstd = row->rstd;
    *group.s.exponent = row->exponent;
    for (ptrdiff_t b = begin; b < end; b += LNORM_BLOCK) {
        const ptrdiff_t m = end - b < LNORM_BLOCK ? end - b : LNORM_BLOCK;
        fetch_block(&group, b + m);
        write_row(&group, 0, b, m, &vscale, &voffset, &vy, job->stream);
    }
    FENCE(job->stream);
}
