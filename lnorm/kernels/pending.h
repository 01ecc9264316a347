/* A row that is written around the caches while the next one is summed: memory is read and written at once. */

#define XHAT(x, k, r, c) (((x) - (k)) * (r) - (c))
#define AFFINE(x, k, r, c, g, b) (XHAT(x, k, r, c) * (g) + (b))

/* What is left of it, in whole lines. */
typedef struct {
    T *y;
    const T *x, *scale, *offset;
    ptrdiff_t left, scale_step, offset_step; /* elements; the steps are 1, or 0 where all elements are the same */
    T k, r, c;
} Pending;

/* m elements of it. They are loaded before one is written: where y stands a little ahead of x modulo a page, no load waits for a
   store. */
INLINE void write_lines(Pending *row, int m)
{
    const V k = SPLAT(row->k), r = SPLAT(row->r), c = SPLAT(row->c);
    V x[4 * NARROW / W];
    UNROLL for (int l = 0; l < m; l += W) x[l / W] = load(row->x + l);
    UNROLL for (int l = 0; l < m; l += W)
        stream_to(row->y + l, AFFINE(x[l / W], k, r, c, load(row->scale + l), load(row->offset + l)));
    row->x += m;
    row->y += m;
    row->scale += m * row->scale_step;
    row->offset += m * row->offset_step;
    row->left -= m;
}

/* As much of it as is summed of the next row at a time: four of each lane. */
INLINE void write_some(Pending *row)
{
    Pending at = *row;
    for (ptrdiff_t m = 0; m < 4 * LANES && at.left >= 4 * NARROW; m += 4 * NARROW)
        write_lines(&at, 4 * NARROW);
    *row = at;
}

INLINE void write_rest(Pending *row)
{
    Pending at = *row;
    while (at.left >= 4 * NARROW)
        write_lines(&at, 4 * NARROW);
    while (at.left)
        write_lines(&at, NARROW);
    *row = at;
}
