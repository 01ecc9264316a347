/* y = γ·x̂ + β with x̂ = (x - μ)·rstd, row by row: Ba, Kiros and Hinton, Layer Normalization, 2016, arXiv:1607.06450. */

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
    const ptrdiff_t step = downwards(x, y) ? -W : W;
    for (ptrdiff_t j = step < 0 ? begin + (end - begin) / W * W : begin; begin <= j && j <= end; j += step) {
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

/* Rows of at least one register and at most HELD, each of which takes those of scale and offset as they are at hand. The last elements
   may overlap a register; they are computed before anything is written, because y may be x. */
INLINE void affine_held(T *y, ptrdiff_t y_step, const T *x, ptrdiff_t x_step, const T *scale, const T *offset,
                        ptrdiff_t n, const Stats *s, int rows)
{
    const ptrdiff_t end = n - W;
    const V g_end = load(scale + end), b_end = load(offset + end);
    V g[HELD], b[HELD];
    UNROLL for (int q = 0; q < HELD; q++)
    {
        const ptrdiff_t j = q * W <= end ? q * W : 0;
        g[q] = load(scale + j);
        b[q] = load(offset + j);
    }
    for (int i = 0; i < rows; i++, x += x_step, y += y_step) {
        const V k = SPLAT(s->k[i]), r = SPLAT(s->r[i]), c = SPLAT(s->c[i]);
        const V tail = AFFINE(load(x + end), k, r, c, g_end, b_end);
        UNROLL for (int q = 0; q < HELD; q++)
        {
            if (q * W > end)
                break;
            store(y + q * W, AFFINE(load(x + q * W), k, r, c, g[q], b[q]));
        }
        if (n % W)
            store(y + end, tail);
    }
}

/* The same of row i of a group, around the caches: at least one line, whole ones, while as much is fetched from `ahead`, read next.
   A line of x is loaded before the one ahead of it is written: where y stands a little ahead of x modulo a page, no load waits
   for a store. */
INLINE void affine_fetching(T *y, const T *x, const T *scale, const T *offset, ptrdiff_t m, const Stats *s, int i,
                            const char *ahead)
{
    enum { A_LINE = NARROW / W };
    const V k = SPLAT(s->k[i]), r = SPLAT(s->r[i]), c = SPLAT(s->c[i]);
    V now[A_LINE], next[A_LINE];
    for (int q = 0; q < A_LINE; q++)
        next[q] = load(x + q * W);
    for (ptrdiff_t j = 0; j < m; j += NARROW) {
        const ptrdiff_t following = j + NARROW < m ? j + NARROW : j;
        PREFETCH(ahead + j * T_SIZE);
        UNROLL for (int q = 0; q < A_LINE; q++)
        {
            now[q] = next[q];
            next[q] = load(x + following + q * W);
        }
        UNROLL for (int q = 0; q < A_LINE; q++)
        {
            const ptrdiff_t l = j + q * W;
            stream_to(y + l, AFFINE(now[q], k, r, c, load(scale + l), load(offset + l)));
        }
    }
}

/* Whole lines, or none; with `ahead`, as much is fetched from there. */
INLINE void affine_lines(T *y, const T *x, const T *scale, const T *offset, ptrdiff_t m, const Stats *s, int i,
                         const char *ahead)
{
    const V k = SPLAT(s->k[i]), r = SPLAT(s->r[i]), c = SPLAT(s->c[i]);
    const ptrdiff_t step = downwards(x, y) ? -W : W;
    if (FETCH_NEXT && ahead && m) {
        affine_fetching(y, x, scale, offset, m, s, i, ahead);
        return;
    }
    for (ptrdiff_t j = step < 0 ? m - W : 0; 0 <= j && j < m; j += step) {
        if (ahead && j % NARROW < W)
            PREFETCH(ahead + j * T_SIZE);
        stream_to(y + j, AFFINE(load(x + j), k, r, c, load(scale + j), load(offset + j)));
    }
}

/* As many elements as a line has. */
INLINE void affine_line(T *to, const T *x, const T *scale, const T *offset, const Stats *s, int i)
{
    for (int l = 0; l < NARROW; l += W)
        store(to + l,
              AFFINE(load(x + l), SPLAT(s->k[i]), SPLAT(s->r[i]), SPLAT(s->c[i]), load(scale + l), load(offset + l)));
}

/* All m of them: whole lines, and the ends. A line that is shared with another row is written when all of it is known. */
INLINE void affine_streamed(T *y, const T *x, const T *scale, const T *offset, ptrdiff_t m, const Stats *s, int i,
                            Seam *seam, const char *ahead)
{
    const ptrdiff_t begin = until_aligned(y, LINE), rest = (m - begin) % NARROW, last = m - NARROW;
    if (m < NARROW) {
        affine(y, 0, x, 0, scale, offset, m, s, i, 1);
        return;
    }
    if (begin)
        affine_line(seam->line + NARROW, x, scale, offset, s, i);
    begin_at_seam(seam, y, begin);
    affine_lines(y + begin, x + begin, scale + begin, offset + begin, m - begin - rest, s, i,
                 ahead ? ahead + begin * T_SIZE : NULL);
    if (rest)
        affine_line(seam->line, x + last, scale + last, offset + last, s, i);
    end_at_seam(seam, y + m, rest);
}

/* Rows of whole lines, end to end, that begin anywhere in one: the scales and offsets of the line that two rows share, and which of
   its elements are of the first. */
typedef struct {
    ptrdiff_t begin; /* elements of a row up to its first whole line */
    T scale[NARROW], offset[NARROW];
    int32_t of_first[LINE / 4];
} Border;

static NOINLINE void border_of(Border *border, const T *y, const T *scale, const T *offset, ptrdiff_t n)
{
    const ptrdiff_t begin = until_aligned(y, LINE), rest = NARROW - begin;
    border->begin = begin;
    memcpy(border->scale, scale + n - rest, (size_t)rest * T_SIZE);
    memcpy(border->scale + rest, scale, (size_t)begin * T_SIZE);
    memcpy(border->offset, offset + n - rest, (size_t)rest * T_SIZE);
    memcpy(border->offset + rest, offset, (size_t)begin * T_SIZE);
    for (int i = 0; i < LINE / 4; i++)
        border->of_first[i] = i < rest * (T_SIZE / 4) ? -1 : 0;
}

/* The line that row i of a group, at x, shares with the next. */
INLINE void write_border(T *y, const T *x, const Stats *s, int i, const Border *border)
{
    const V k[] = {SPLAT(s->k[i]), SPLAT(s->k[i + 1])}, r[] = {SPLAT(s->r[i]), SPLAT(s->r[i + 1])};
    const V c[] = {SPLAT(s->c[i]), SPLAT(s->c[i + 1])};
    UNROLL for (int l = 0; l < NARROW; l += W)
    {
        const int32_t *of_first = border->of_first + l * (T_SIZE / 4);
        stream_to(y + l, AFFINE(load(x + l), choose(of_first, k[0], k[1]), choose(of_first, r[0], r[1]),
                                choose(of_first, c[0], c[1]), load(border->scale + l), load(border->offset + l)));
    }
}

/* Such rows, around the caches; x, too, is end to end. */
INLINE void stream_end_to_end(T *y, const T *x, const T *scale, const T *offset, ptrdiff_t n, const Stats *s, int rows,
                              const Border *border, Seam *seam)
{
    const ptrdiff_t begin = border->begin, rest = (n - begin) % NARROW;
    affine_line(seam->line + NARROW, x, scale, offset, s, 0);
    begin_at_seam(seam, y, begin);
    affine_line(seam->line, x + rows * n - NARROW, scale + n - NARROW, offset + n - NARROW, s, rows - 1);
    end_at_seam(seam, y + rows * n, rest);
    for (int i = 0; i < rows; i++, x += n, y += n) {
        affine_lines(y + begin, x + begin, scale + begin, offset + begin, n - rest - begin, s, i, NULL);
        if (rest && i + 1 < rows)
            write_border(y + n - rest, x + n - rest, s, i, border);
    }
}

/* The rows of a group for which the first pass was not enough. False if one is not finite or near the limits of its type. */
static NOINLINE int settle_rest(Stats *s, const lnorm_job *job, const T *const *x, int rows)
{
    View vx;
    view_of(&vx, job, LNORM_X);
    for (int i = 0; i < rows; i++) {
        if (s->state[i] == SETTLED)
            continue;
        settle_slowly(s, i, &vx, (const char *)x[i]);
        if (s->exponent[i] || isnan(s->rstd[i]))
            return 0;
    }
    return 1;
}

/* Element j of scale or offset, and those behind it. */
INLINE const T *parameter(const lnorm_walk *walk, int operand, ptrdiff_t j)
{
    return (const T *)walk->at[operand] + (walk->job->op[operand].block ? 0 : j);
}

/* The results of some rows around the caches, a block of each in turn: what they share of scale and offset is read once. */
INLINE void stream_in_turn(const lnorm_walk *walk, T *y, ptrdiff_t y_step, const T *const *x, const Stats *s, int rows,
                           Seam *seam)
{
    const ptrdiff_t n = walk->job->n, last = n - NARROW;
    for (int i = 0; i < rows; i++) {
        const ptrdiff_t begin = until_aligned(y + i * y_step, LINE);
        affine_line(seam->line + NARROW, x[i], parameter(walk, LNORM_SCALE, 0), parameter(walk, LNORM_OFFSET, 0), s, i);
        begin_at_seam(seam, y + i * y_step, begin);
        affine_line(seam->line, x[i] + last, parameter(walk, LNORM_SCALE, last), parameter(walk, LNORM_OFFSET, last), s,
                    i);
        end_at_seam(seam, y + i * y_step + n, (n - begin) % NARROW);
    }
    for (ptrdiff_t b = 0; b < n; b += LNORM_BLOCK)
        for (int i = 0; i < rows; i++) {
            const ptrdiff_t j = b + until_aligned(y + i * y_step, LINE), left = (n - j) / NARROW * NARROW;
            affine_lines(y + i * y_step + j, x[i] + j, parameter(walk, LNORM_SCALE, j),
                         parameter(walk, LNORM_OFFSET, j), left < LNORM_BLOCK ? left : LNORM_BLOCK, s, i, NULL);
        }
}

/* Some rows that share scale and offset: their statistics together, and their results if they share registers of scale and
   offset. False, and nothing is written, if one of them is special. */
INLINE int forward_rows(const lnorm_walk *walk, T *y, ptrdiff_t y_step, const T *first, ptrdiff_t x_step, double *mean,
                        double *rstd, ptrdiff_t width, int rows, int share, int ahead, Seam *seam, const Border *border)
{
    const lnorm_job *job = walk->job;
    const ptrdiff_t n = job->n;
    const T *x[ROWS];
    Progress progress;
    Stats s;
    for (int i = 0; i < rows; i++)
        x[i] = first + i * x_step;
    KNOWN(n <= (rows == 16 ? LANES : rows == 8 ? FEW : n));
    begin_stats(&progress, x, n, rows);
    for (int i = 0; i < rows; i++) {
        if (ahead)
            fetch(x[i] + rows * x_step, n, 0);
        if (rows <= 4 && n > FEW && job->in_turn && !job->stream) /* in place */
            fetch_pages(x[i], n * T_SIZE);
        sum_row(&progress.total_d[i], &progress.total_d2[i], x[i], n, progress.center[i], NULL);
    }
    if (settle_rows(&s, &progress, n, job->epsilon, rows) != SETTLED && !settle_rest(&s, job, x, rows))
        return 0;
    /* bytes to what is fetched while a row is written around the caches: the next one, if one of them keeps it until it is summed */
    const ptrdiff_t later = rows > 1 ? AHEAD : FETCH_NEXT && n * T_SIZE <= ROOM ? x_step * T_SIZE : 0;
    const int in_turn = job->stream && rows == 4 && n > FEW;
    if (in_turn)
        stream_in_turn(walk, y, y_step, x, &s, rows, seam);
    if (border)
        stream_end_to_end(y, first, parameter(walk, LNORM_SCALE, 0), parameter(walk, LNORM_OFFSET, 0), n, &s, rows,
                          border, seam);
    for (ptrdiff_t b = 0; b < n && !in_turn && !border; b += width) {
        const T *scale = parameter(walk, LNORM_SCALE, b), *offset = parameter(walk, LNORM_OFFSET, b);
        const ptrdiff_t m = n - b < width ? n - b : width;
        if (job->stream)
            for (int i = 0; i < rows; i++)
                affine_streamed(y + i * y_step + b, x[i] + b, scale, offset, m, &s, i, seam,
                                later ? (const char *)(x[i] + b) + later : NULL);
        else if (rows > 4 && W <= n && n <= HELD * W)
            affine_held(y, y_step, x[0], x_step, scale, offset, n, &s, rows);
        else if (share)
            affine(y + b, y_step, x[0] + b, x_step, scale, offset, m, &s, 0, rows);
        else
            for (int i = 0; i < rows; i++)
                affine(y + i * y_step + b, 0, x[i] + b, 0, scale, offset, m, &s, i, 1);
    }
    for (int i = 0; mean && i < rows; i++) {
        mean[i] = s.mean[i];
        rstd[i] = s.rstd[i];
    }
    return 1;
}

/* Of `left` rows side by side, whose first is the i-th of all, `rows` at a time, as many as there are up to a special one.
   How many that is. */
INLINE ptrdiff_t forward_run(const lnorm_walk *walk, ptrdiff_t i, ptrdiff_t left, ptrdiff_t width, int rows, int share,
                             int ahead, Seam *seam)
{
    const lnorm_job *job = walk->job;
    const int last = job->outer_ndim - 1;
    const ptrdiff_t n = job->n, x_step = last < 0 ? 0 : job->op[LNORM_X].outer[last] / T_SIZE;
    const ptrdiff_t y_step = last < 0 ? 0 : job->op[LNORM_Y].outer[last] / T_SIZE;
    const T *x = (const T *)walk->at[LNORM_X];
    T *y = (T *)walk->at[LNORM_Y];
    const int end_to_end = rows > 4 && job->stream && x_step == n && y_step == n && n % NARROW == 0;
    Border border;
    ptrdiff_t done = 0;
    if (end_to_end)
        border_of(&border, y, parameter(walk, LNORM_SCALE, 0), parameter(walk, LNORM_OFFSET, 0), n);
    while (done + rows <= left &&
           forward_rows(walk, y + done * y_step, y_step, x + done * x_step, x_step,
                        job->mean ? job->mean + i + done : NULL, job->mean ? job->rstd + i + done : NULL, width, rows,
                        share, ahead, seam, end_to_end ? &border : NULL))
        done += rows;
    return done;
}

#define RUN_OF(name, rows)                                                                                          \
    static NOINLINE ptrdiff_t name(const lnorm_walk *walk, ptrdiff_t i, ptrdiff_t left, ptrdiff_t width, int share, \
                                   int ahead, Seam *seam)                                                           \
    {                                                                                                               \
        return forward_run(walk, i, left, width, rows, (rows == 4 || rows == 2) && share, rows > 4 && ahead, seam); \
    }
RUN_OF(forward_sixteens, 16)
RUN_OF(forward_eights, 8)
RUN_OF(forward_fours, 4)
RUN_OF(forward_twos, 2)
RUN_OF(forward_singly, 1)
#undef RUN_OF

/* Whether rows may be taken together. */
INLINE int lie_alike(const lnorm_job *job)
{
    const int last = job->outer_ndim - 1;
    return job->op[LNORM_X].contiguous && job->op[LNORM_Y].contiguous &&
           (last < 0 || (job->op[LNORM_SCALE].outer[last] == 0 && job->op[LNORM_OFFSET].outer[last] == 0)) &&
           (job->op[LNORM_SCALE].contiguous || job->op[LNORM_SCALE].block) &&
           (job->op[LNORM_OFFSET].contiguous || job->op[LNORM_OFFSET].block);
}

/* One row on its way, wherever its elements are. */
typedef struct {
    int exists;
    char *at[LNORM_GRAD];
    View x;
    Progress progress;
    Stats s;
} Row;

/* The next row, or none. Its first elements are on their way to their mean. */
INLINE void begin(Row *row, lnorm_walk *walk, int exists)
{
    row->exists = exists;
    for (int k = 0; k < LNORM_GRAD; k++)
        row->at[k] = walk->at[k];
    if (!exists)
        return;
    begin_row(&row->progress, &row->x, row->at[LNORM_X]);
    lnorm_walk_on(walk, 1);
}

INLINE void finish(Row *row, double *mean, double *rstd)
{
    finish_row(&row->s, &row->progress, &row->x, row->at[LNORM_X]);
    if (mean) {
        *mean = *row->s.mean;
        *rstd = *row->s.rstd;
    }
}

/* The m elements from the b-th on. Streamed, they begin and end with a line as far as the row allows it, and what `next`, if
   there is one, is to read soon is fetched. */
INLINE void write_row(Row *row, ptrdiff_t b, ptrdiff_t m, View *vscale, View *voffset, View *vy, Seam *seam,
                      int streamed, const Row *next)
{
    const Stats *s = &row->s;
    char *y = row->at[LNORM_Y];
    streamed = streamed && vy->op->contiguous;
    if (streamed) {
        const ptrdiff_t over = (ptrdiff_t)((uintptr_t)y % LINE / T_SIZE), begin = b ? b - over : 0;
        m = b + m < vy->job->n ? b + m - over - begin : b + m - begin;
        b = begin;
    }
    T *to = place(vy, y, b, 0);
    const T *x = get(&row->x, row->at[LNORM_X], b, m, *s->exponent);
    const T *scale = get(vscale, row->at[LNORM_SCALE], b, m, 0);
    const T *offset = get(voffset, row->at[LNORM_OFFSET], b, m, 0);
    if (isnan(*s->rstd))
        fill(to, m, (T)NAN);
    else if (streamed)
        affine_streamed(to, x, scale, offset, m, s, 0, seam, next ? next->at[LNORM_X] + b * T_SIZE + AHEAD : NULL);
    else
        affine(to, 0, x, 0, scale, offset, m, s, 0, 1);
    put(vy, y, b, m, 0);
}

/* Any rows. One is written while the next is summed, block by block, so that memory is never only read or only written. The
   last block is written after the next row's mean and root have been asked for: nothing waits for those. */
static NOINLINE void forward_one_by_one(lnorm_walk *walk, ptrdiff_t first, ptrdiff_t last)
{
    const lnorm_job *job = walk->job;
    const ptrdiff_t n = job->n, last_block = (n - 1) / LNORM_BLOCK * LNORM_BLOCK;
    Row rows[3], *ready = &rows[0], *next = &rows[1], *after = &rows[2];
    View vscale, voffset, vy;
    Seam seam;
    seam.open = 0;
    view_of(&vscale, job, LNORM_SCALE);
    view_of(&voffset, job, LNORM_OFFSET);
    view_of(&vy, job, LNORM_Y);
    for (int i = 0; i < 3; i++)
        view_of(&rows[i].x, job, LNORM_X);
    ready->exists = 0;
    for (begin(next, walk, first < last); next->exists || ready->exists; first++) {
        RowSums sums;
        for (ptrdiff_t b = 0; b < n; b += LNORM_BLOCK) {
            const ptrdiff_t m = n - b < LNORM_BLOCK ? n - b : LNORM_BLOCK;
            if (next->exists)
                add_to_stats(&next->progress, 0, &sums, get(&next->x, next->at[LNORM_X], b, m, 0), b, m, n);
            if (b && ready->exists)
                write_row(ready, b - LNORM_BLOCK, LNORM_BLOCK, &vscale, &voffset, &vy, &seam, job->stream, next);
        }
        begin(after, walk, first + 1 < last);
        if (next->exists)
            finish(next, job->mean ? job->mean + first : NULL, job->mean ? job->rstd + first : NULL);
        if (ready->exists)
            write_row(ready, last_block, n - last_block, &vscale, &voffset, &vy, &seam, job->stream, next);
        Row *const free = ready;
        ready = next;
        next = after;
        after = free;
    }
    close_seam(&seam);
}

/* Rows that may be taken together. Fours and twos that begin at the same place of a line share scale and offset in registers, where
   there are 32 of these: with 16, one row at a time takes 0.8 of the time (Emerald Rapids). */
static NOINLINE void forward_together(lnorm_walk *walk, ptrdiff_t first, ptrdiff_t last)
{
    const lnorm_job *job = walk->job;
    const ptrdiff_t n = job->n, bytes = n * T_SIZE;
    const int bare = job->op[LNORM_SCALE].block && job->op[LNORM_OFFSET].block, far = job->size > DISTANT;
    const int share = BYTES == 64 && n > FEW && bytes % LINE == 0 && !job->stream;
    const int in_turn = job->stream && !bare && !FETCH_NEXT && IN_TURN <= bytes && bytes <= IN_TURN_MOST;
    const ptrdiff_t width = in_turn ? LNORM_BLOCK : block_width(job);
    const int most = !BYTES                               ? 1
                     : n <= LANES                         ? 16
                     : n <= FEW                           ? 8
                     : in_turn || (bytes < APART && !far) ? 4
                     : share && bytes < 2 * APART         ? 2
                                                          : 1;
    const int ahead = job->size > ROOM && n <= FEW && most * bytes <= FETCHED;
    Seam seam;
    seam.open = 0;
    while (first < last) {
        const ptrdiff_t inner = lnorm_walk_left(walk), left = inner < last - first ? inner : last - first;
        const int rows = left >= most ? most : most > 4 && left >= 4 ? 4 : 1;
        ptrdiff_t done = rows == 16  ? forward_sixteens(walk, first, left, width, share, ahead, &seam)
                         : rows == 8 ? forward_eights(walk, first, left, width, share, ahead, &seam)
                         : rows == 4 ? forward_fours(walk, first, left, width, share, ahead, &seam)
                         : rows == 2 ? forward_twos(walk, first, left, width, share, ahead, &seam)
                                     : forward_singly(walk, first, left, width, share, ahead, &seam);
        if (!done && rows > 1) /* one of them is special */
            done = forward_singly(walk, first, rows, width, share, ahead, &seam);
        if (done)
            lnorm_walk_on(walk, done);
        else
            forward_one_by_one(walk, first, first + 1);
        first += done ? done : 1;
    }
    close_seam(&seam);
}

/* A row whose elements stand side by side, its ends in the seam and the rest pending. */
INLINE void begin_pending(Pending *pending, const lnorm_walk *walk, const Stats *s, View *vscale, View *voffset,
                          Seam *seam)
{
    const ptrdiff_t n = walk->job->n, last = n - NARROW;
    const char *scale = walk->at[LNORM_SCALE], *offset = walk->at[LNORM_OFFSET];
    const T *x = (const T *)walk->at[LNORM_X];
    T *y = (T *)walk->at[LNORM_Y];
    const ptrdiff_t begin = until_aligned(y, LINE), rest = (n - begin) % NARROW;
    affine_line(seam->line + NARROW, x, get(vscale, scale, 0, NARROW, 0), get(voffset, offset, 0, NARROW, 0), s, 0);
    begin_at_seam(seam, y, begin);
    affine_line(seam->line, x + last, get(vscale, scale, last, NARROW, 0), get(voffset, offset, last, NARROW, 0), s, 0);
    end_at_seam(seam, y + n, rest);
    *pending = (Pending){.y = y,
                         .x = x,
                         .at = begin,
                         .end = n - rest,
                         .k = *s->k,
                         .r = *s->r,
                         .c = *s->c,
                         .vscale = vscale,
                         .voffset = voffset,
                         .scales = scale,
                         .offsets = offset,
                         .held_end = begin};
}

/* Rows whose elements stand side by side, each of which is written while the next is summed. */
static NOINLINE void forward_in_turn(lnorm_walk *walk, ptrdiff_t first, ptrdiff_t last)
{
    const lnorm_job *job = walk->job;
    Pending pending = {.at = 0};
    View vscale, voffset;
    Seam seam;
    seam.open = 0;
    view_of(&vscale, job, LNORM_SCALE);
    view_of(&voffset, job, LNORM_OFFSET);
    while (first < last) {
        const T *x = (const T *)walk->at[LNORM_X];
        Progress progress;
        Stats s;
        begin_stats(&progress, &x, job->n, 1);
        sum_row(progress.total_d, progress.total_d2, x, job->n, *progress.center, &pending);
        write_rest(&pending);
        if (settle_rows(&s, &progress, job->n, job->epsilon, 1) == SETTLED || settle_rest(&s, job, &x, 1)) {
            begin_pending(&pending, walk, &s, &vscale, &voffset, &seam);
            if (job->mean) {
                job->mean[first] = *s.mean;
                job->rstd[first] = *s.rstd;
            }
            lnorm_walk_on(walk, 1);
        } else
            forward_one_by_one(walk, first, first + 1);
        first++;
    }
    write_rest(&pending);
    close_seam(&seam);
}

/* One element of m observations side by side, or some elements, which so share the registers of what differs between
   observations: k, r and c. */
typedef struct {
    T *y[ABREAST];
    const T *x[ABREAST];
    T scale[ABREAST], offset[ABREAST];
} Elements;

/* Whole registers, where the elements share their place in one, and the ends, which may overlap them: these are computed before
   anything is written, because y may be x. */
INLINE void affine_across(const Elements *at, int elements, const Strip *s, ptrdiff_t m)
{
#define OUT(q, j, k, r, c) AFFINE(load(at->x[q] + (j)), k, r, c, SPLAT(at->scale[q]), SPLAT(at->offset[q]))
    const ptrdiff_t begin = until_aligned(at->y[0], W * T_SIZE), end = m - W;
    V head[ABREAST], tail[ABREAST];
    for (int q = 0; q < elements; q++) {
        head[q] = OUT(q, 0, load(s->k), load(s->r), load(s->c));
        tail[q] = OUT(q, end, load(s->k + end), load(s->r + end), load(s->c + end));
    }
    for (ptrdiff_t j = begin; j <= end; j += W) {
        const V k = load(s->k + j), r = load(s->r + j), c = load(s->c + j);
        UNROLL for (int q = 0; q < elements; q++) store(at->y[q] + j, OUT(q, j, k, r, c));
    }
    for (int q = 0; q < elements; q++) {
        if (begin)
            store(at->y[q], head[q]);
        store(at->y[q] + end, tail[q]);
    }
#undef OUT
}

/* One element, in whole lines around the caches. What is read later is fetched. */
INLINE void stream_across(const Elements *at, const Strip *s, ptrdiff_t m)
{
    T *y = at->y[0];
    const T *x = at->x[0];
    const V g = SPLAT(at->scale[0]), b = SPLAT(at->offset[0]);
    const ptrdiff_t ahead = ahead_of(s, s->x_step);
    const ptrdiff_t begin = until_aligned(y, LINE), end = begin + (m - begin) / NARROW * NARROW;
#define OUT(j) AFFINE(load(x + (j)), load(s->k + (j)), load(s->r + (j)), load(s->c + (j)), g, b)
    for (ptrdiff_t j = 0; j < begin; j += W)
        store_part(y + j, OUT(j), 0, begin - j < W ? begin - j : W);
    for (ptrdiff_t j = begin; j < end; j += W) {
        if ((j - begin) % NARROW < W)
            PREFETCH(x + j + ahead);
        stream_to(y + j, OUT(j));
    }
    for (ptrdiff_t j = m - W; j > end - W; j -= W)
        store_part(y + j, OUT(j), end > j ? end - j : 0, W);
#undef OUT
}

INLINE void find_elements(Elements *at, const lnorm_walk *walk, ptrdiff_t j, int elements)
{
    const lnorm_operand *op = walk->job->op;
    for (int q = 0; q < elements; q++, j++) {
        at->y[q] = (T *)(walk->at[LNORM_Y] + j * op[LNORM_Y].inner[0]);
        at->x[q] = (const T *)(walk->at[LNORM_X] + j * op[LNORM_X].inner[0]);
        at->scale[q] = *(const T *)(walk->at[LNORM_SCALE] + j * op[LNORM_SCALE].inner[0]);
        at->offset[q] = *(const T *)(walk->at[LNORM_OFFSET] + j * op[LNORM_OFFSET].inner[0]);
    }
}

/* y of a strip. False, and nothing is written, if one observation is not finite or near the limits of its type. */
static NOINLINE int forward_strip(const lnorm_walk *walk, View *vx, double *mean, double *rstd, int m)
{
    const lnorm_job *job = walk->job;
    const int streamed = job->stream && m >= 2 * NARROW;
    Strip strip;
    Lane sums[WAITING];
    Elements at;
    strip_of(&strip, walk, m);
    if (!stats_of_strip(&strip, sums, vx, mean, rstd))
        return 0;
    const int alike = job->op[LNORM_Y].inner[0] % (W * T_SIZE) == 0;
    ptrdiff_t j = 0;
    for (; j + ABREAST <= job->n && alike && !streamed; j += ABREAST) {
        find_elements(&at, walk, j, ABREAST);
        affine_across(&at, ABREAST, &strip, m);
    }
    for (; j < job->n; j++) {
        find_elements(&at, walk, j, 1);
        if (streamed) {
            fetch_ends(at.y[0] + 2 * (job->op[LNORM_Y].inner[0] / T_SIZE), m);
            stream_across(&at, &strip, m);
        } else
            affine_across(&at, 1, &strip, m);
    }
    return 1;
}

/* The observations of the next strip, of so many that are left. Where the elements of y begin at the same place of a line, the next
   strip begins with one. */
INLINE ptrdiff_t strip_width(const lnorm_walk *walk, ptrdiff_t left)
{
    const ptrdiff_t m = lnorm_strip(left, T_SIZE),
                    over = NARROW - until_aligned((const T *)walk->at[LNORM_Y] + m, LINE);
    return m < left && over < NARROW ? m - over : m;
}

static void forward(const lnorm_job *job, ptrdiff_t first, ptrdiff_t last)
{
    lnorm_walk walk;
    View vx;
    lnorm_walk_to(&walk, job, first);
    view_of(&vx, job, LNORM_X);
    if (!job->columns) {
        if (job->stream && job->in_turn && BYTES >= 32 && job->n > 2 * SHORT && job->op[LNORM_X].contiguous &&
            job->op[LNORM_Y].contiguous)
            forward_in_turn(&walk, first, last);
        else if (lie_alike(job) && !(job->stream && FEW < job->n && job->n < ALONE))
            forward_together(&walk, first, last);
        else
            forward_one_by_one(&walk, first, last);
    }
    for (ptrdiff_t m, narrow = 0; job->columns && first < last; first += m, narrow -= m) {
        const ptrdiff_t left = lnorm_walk_left(&walk), most = left < last - first ? left : last - first;
        m = narrow > 0 ? (most < NARROW ? most : NARROW) : strip_width(&walk, most);
        if (m >= W &&
            forward_strip(&walk, &vx, job->mean ? job->mean + first : NULL, job->mean ? job->rstd + first : NULL, m))
            lnorm_walk_on(&walk, m);
        else if (m > NARROW) { /* something special is in it: the others in smaller strips */
            narrow = m;
            m = 0;
        } else
            forward_one_by_one(&walk, first, first + m);
    }
    FENCE(job->stream);
}

/* A long row that threads share; see kernels.h. */
INLINE void long_row(Row *one, const lnorm_job *job, ptrdiff_t i)
{
    lnorm_walk walk;
    lnorm_walk_to(&walk, job, i);
    view_of(&one->x, job, LNORM_X);
    begin(one, &walk, 1);
}

static void long_sums(const lnorm_job *job, ptrdiff_t i, ptrdiff_t first, ptrdiff_t last, void *sums)
{
    Row one;
    Pending none = {.at = 0}, *const pending = job->in_turn ? &none : NULL; /* so that x is asked for ahead */
    long_row(&one, job, i);
    for (ptrdiff_t segment = first; segment < last; segment++) {
        const ptrdiff_t begin = segment * LNORM_SEGMENT, rest = job->n - begin;
        const ptrdiff_t end = rest < LNORM_SEGMENT ? job->n : begin + LNORM_SEGMENT;
        Sums segment_sums;
        for (ptrdiff_t b = begin; b < end; b += LNORM_BLOCK) {
            const ptrdiff_t m = end - b < LNORM_BLOCK ? end - b : LNORM_BLOCK;
            Lanes lanes;
            add_up(&lanes, get(&one.x, one.at[LNORM_X], b, m, 0), m, *one.progress.center, pending);
            empty_lanes(&segment_sums, &lanes, b == begin);
        }
        memcpy((char *)sums + segment * LNORM_SUMS_BYTES, &segment_sums, sizeof segment_sums);
    }
}

static void long_stats(const lnorm_job *job, ptrdiff_t i, ptrdiff_t segments, const void *sums, lnorm_row *row)
{
    Row one;
    Sums total = {0}, segment;
    long_row(&one, job, i);
    for (ptrdiff_t k = 0; k < segments; k++) {
        memcpy(&segment, (const char *)sums + k * LNORM_SUMS_BYTES, sizeof segment);
        add_segment(&total, &segment, k == 0);
    }
    *one.progress.total_d = total_of(&total.d);
    *one.progress.total_d2 = total_of(&total.d2);
    finish(&one, job->mean ? job->mean + i : NULL, job->mean ? job->rstd + i : NULL);
    row->center = *one.s.k;
    row->rstd = *one.s.r;
    row->mean_x = *one.s.c;
    row->exponent = *one.s.exponent;
}

static void long_write(const lnorm_job *job, ptrdiff_t i, ptrdiff_t begin, ptrdiff_t end, const lnorm_row *row)
{
    Row one;
    View vscale, voffset, vy;
    Seam seam;
    seam.open = 0;
    view_of(&vscale, job, LNORM_SCALE);
    view_of(&voffset, job, LNORM_OFFSET);
    view_of(&vy, job, LNORM_Y);
    long_row(&one, job, i);
    *one.s.k = (T)row->center;
    *one.s.r = (T)row->rstd;
    *one.s.c = (T)row->mean_x;
    *one.s.rstd = row->rstd;
    *one.s.exponent = row->exponent;
    for (ptrdiff_t b = begin; b < end; b += LNORM_BLOCK) {
        const ptrdiff_t m = end - b < LNORM_BLOCK ? end - b : LNORM_BLOCK;
        if (job->in_turn && one.x.op->contiguous)
            fetch_pages((const T *)one.at[LNORM_X] + b, m * T_SIZE);
        write_row(&one, b, m, &vscale, &voffset, &vy, &seam, job->stream, NULL);
    }
    close_seam(&seam);
    FENCE(job->stream);
}
