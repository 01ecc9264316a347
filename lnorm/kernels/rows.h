/* A row's elements in blocks that stand side by side, wherever they are in memory. */

/* One operand, a block of a row at a time. */
typedef struct {
    const lnorm_job *job;
    const lnorm_operand *op;
    const char *held;         /* the row that is in block[] since the last gather, from element held_at on */
    ptrdiff_t held_at, alike; /* up to element `alike` of that row, all are what the whole block is filled with; or 0 */
    T block[LNORM_BLOCK + LINE / T_SIZE]; /* a block may be so much longer that it ends with a line */
} View;

INLINE void view_of(View *view, const lnorm_job *job, int operand)
{
    view->job = job;
    view->op = &job->op[operand];
    view->held = NULL;
    view->alike = 0;
}

INLINE void fill(T *block, ptrdiff_t m, T value)
{
    for (ptrdiff_t j = 0; j < m; j++)
        block[j] = value;
}

/* A row whose numbers leave the range in which squares are safe is taken times a power of two. One value that serves more than
   a block, such as a channel's scale where rows are images, is not gathered again for the next. */
static NOINLINE const T *gather(View *view, const char *row, ptrdiff_t i, ptrdiff_t m, int exponent)
{
    lnorm_steps steps;
    if (!exponent && view->held == row && (view->held_at == i || (view->held_at < i && i + m <= view->alike)))
        return view->block;
    view->alike = 0;
    lnorm_steps_to(&steps, view->job, view->op, i);
    for (ptrdiff_t j = 0, run, stride; j < m; j += run, lnorm_steps_on(&steps, run)) {
        const ptrdiff_t left = lnorm_steps_left(&steps, &stride);
        const char *from = row + steps.at;
        run = left < m - j ? left : m - j;
        if (stride == T_SIZE)
            memcpy(view->block + j, from, (size_t)run * T_SIZE);
        else if (stride == 0 && run == m && left >= LNORM_BLOCK) {
            fill(view->block, LNORM_BLOCK + NARROW, *(const T *)from);
            view->alike = i + left;
        } else if (stride == 0)
            fill(view->block + j, run, *(const T *)from);
        else
            for (ptrdiff_t l = 0; l < run; l++)
                view->block[j + l] = *(const T *)(from + l * stride);
    }
    if (exponent)
        for (ptrdiff_t j = 0; j < m; j++)
            view->block[j] = (T)ldexp((double)view->block[j], exponent);
    view->held = exponent ? NULL : row;
    view->held_at = i;
    return view->block;
}

static NOINLINE void scatter(View *view, char *row, ptrdiff_t i, ptrdiff_t m, int exponent)
{
    lnorm_steps steps;
    lnorm_steps_to(&steps, view->job, view->op, i);
    if (exponent)
        for (ptrdiff_t j = 0; j < m; j++)
            view->block[j] = (T)ldexp((double)view->block[j], exponent);
    for (ptrdiff_t j = 0, run, stride; j < m; j += run, lnorm_steps_on(&steps, run)) {
        const ptrdiff_t left = lnorm_steps_left(&steps, &stride);
        char *to = row + steps.at;
        run = left < m - j ? left : m - j;
        for (ptrdiff_t l = 0; l < run; l++)
            *(T *)(to + l * stride) = view->block[j + l];
    }
}

/* The m elements from the i-th on, to read. */
INLINE const T *get(View *view, const char *row, ptrdiff_t i, ptrdiff_t m, int exponent)
{
    if (view->op->block)
        return (const T *)row;
    if (view->op->contiguous && !exponent)
        return (const T *)row + i;
    return gather(view, row, i, m, exponent);
}

/* Where to write the m elements from the i-th on, and the end of that writing. */
INLINE T *place(View *view, char *row, ptrdiff_t i, int exponent)
{
    return view->op->contiguous && !exponent ? (T *)row + i : view->block;
}

INLINE void put(View *view, char *row, ptrdiff_t i, ptrdiff_t m, int exponent)
{
    if (!view->op->contiguous || exponent)
        scatter(view, row, i, m, exponent);
}

/* The line that two rows share where they stand end to end. The end of one waits here for the beginning of the next, so that
   this line, too, is written whole, around the caches. */
typedef struct {
    T line[2 * NARROW] __attribute__((aligned(LINE))); /* the end up to element NARROW, the beginning from there on */
    ptrdiff_t open;                                    /* elements that wait */
    T *next;                                           /* where the row that they belong to ends */
} Seam;

/* They wait no longer. */
INLINE void close_seam(Seam *seam)
{
    if (seam->open)
        memcpy(seam->next - seam->open, seam->line + NARROW - seam->open, (size_t)seam->open * T_SIZE);
    seam->open = 0;
}

/* The first `begin` elements of a row, up to a whole line, which are in the seam. */
INLINE void begin_at_seam(Seam *seam, T *row, ptrdiff_t begin)
{
    if (seam->open && seam->next == row) {
        for (int l = 0; l < NARROW; l += W)
            stream_to(row - seam->open + l, load(seam->line + begin + l));
        seam->open = 0;
        return;
    }
    close_seam(seam);
    memcpy(row, seam->line + NARROW, (size_t)begin * T_SIZE);
}

/* The last `rest` elements of a row, which are in the seam, wait. */
INLINE void end_at_seam(Seam *seam, T *end, ptrdiff_t rest)
{
    seam->open = rest;
    seam->next = end;
}

/* Elements to take at a time: a whole row where all operands stand side by side (and none is scaled), else a block. */
INLINE ptrdiff_t block_width(const lnorm_job *job)
{
    for (int k = 0; k < LNORM_GRAD; k++)
        if (!job->op[k].contiguous)
            return LNORM_BLOCK;
    return job->n;
}
